"""From hardware, hours and text at hand to a complete run: `python -m pretrain plan --hours 12 --gpus 8 --gpu h100-80`.

    hours x ranks x peak x MFU                  -> FLOPs that there are
    FLOPs, distinct tokens, every shape by rule -> the shape with the lowest expected loss, and its tokens
    FLOPs of that run                           -> batch and learning rate
    memory of a rank, by `plan.py`              -> micro-batch, ZeRO stage, recomputation
    more tokens than the text has               -> a second round over its harder half

Each choice keeps the sentence that explains it, so the written file is the explanation. The rules and their sources are
in `shape_rules.py` and `scaling_law.py`; what is limited by time, by text or by memory is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.accounting import count_flops, count_parameters
from common.errors import ShardError
from common.token_shards import Meta
from pretrain.errors import ConfigurationError
from pretrain.planning.accelerators import Device, find_device
from pretrain.planning.options import BudgetConfig, parse_count
from pretrain.planning.plan import RECOMPUTATION
from pretrain.planning.scaling_law import batch_tokens, expected_loss, learning_rate, loss_range
from pretrain.planning.shape_rules import shapes
from pretrain.rate_rules import BATCH_WARNING_TOKENS

LONGEST_SEQUENCE, SHORTEST_SEQUENCE = 2048, 128
SEQUENCES_OF_A_BATCH = 16
"""A batch has at least as many, or the sequences are shorter."""
MOST_SEQUENCES = 32
"""Of a micro-batch; more does not make matrix products faster."""
SCORING = 1 / 3
"""FLOPs of scoring a round with the frozen model, in those of training on it."""
KEPT = 0.5
"""Share of round 1 that round 2 serves."""


@dataclass(frozen=True)
class Text:
    """The text at hand."""

    tokens: float | None
    """Distinct tokens; None: as many as needed."""
    vocabulary: int | None
    """Pieces of its tokenizer; None: there is none yet."""
    source: str
    """Where these are from."""


@dataclass(frozen=True)
class Run:
    """A run that the budget pays for. Tokens are those of round 1 unless said otherwise."""

    fields: dict[str, Any]
    """The model's shape."""
    model: PanguPiConfig
    """The same, complete."""
    parameters: int
    sequence: int
    """Tokens of a sample."""
    tokens: float
    """That round 1 trains on."""
    rounds: int
    batch: int
    """Samples of a global batch."""
    wanted_batch: float
    """Tokens of a batch by the law."""
    rate: float
    """Peak learning rate."""
    flops: float
    """Of the whole run, recomputation not counted."""
    loss: float
    """Expected, by the fit that decides."""
    losses: tuple[float, float]
    """Expected, lower and higher."""

    @property
    def steps(self) -> int:
        """Optimizer steps of round 1."""
        return max(1, round(self.tokens / (self.batch * self.sequence)))


@dataclass(frozen=True)
class Budget:
    """What is there, and the runs that it pays for."""

    options: BudgetConfig
    device: Device
    text: Text
    recomputation: bool
    """Whether a third of the work is left for recomputing blocks."""
    runs: list[Run]
    """One of each shape, the lowest expected loss first."""


def make_budget(options: BudgetConfig, recomputation: bool = False, device: Device | None = None) -> Budget:
    """The runs that the options pay for.

    Args:
        options: what is at hand.
        device: of one rank; None looks it up, which for a CPU is a measurement.
        recomputation: whether blocks are recomputed in backward, which costs a third more work.

    Raises:
        ConfigurationError: the shards are not there or not of one tokenizer, or the time is too short for any shape.
    """
    device = device or find_device(options.gpu, options.gpus, options.memory_gb, None)
    text = _text(options)
    seconds = options.hours * 3600 * (1 - options.reserve)
    flops = seconds * options.ranks * device.peak_tflops * 1e12 * options.mfu / (RECOMPUTATION if recomputation else 1)
    runs = sorted(_runs(options, text, flops), key=lambda run: run.loss)
    if options.parameters is not None:
        wanted = parse_count(options.parameters, "parameters")
        runs = sorted(runs, key=lambda run: abs(math.log(run.parameters / wanted)))
    if not runs:
        raise ConfigurationError(
            f"{options.hours:g} hours of {options.ranks} x {options.gpu} are too short for a step of the smallest model"
        )
    return Budget(options, device, text, recomputation, runs)


def _text(options: BudgetConfig) -> Text:
    given = None if options.tokens is None else parse_count(options.tokens, "tokens")
    if not options.shards:
        return Text(given, None, "--tokens" if given else "as much as is needed")
    try:
        metas = {folder: Meta.load(folder) for folder in options.shards}
    except (ShardError, OSError) as error:
        raise ConfigurationError(f"shards: {error}") from None
    if len({meta.tokenizer_hash for meta in metas.values()}) > 1:
        raise ConfigurationError(f"shards: {', '.join(metas)} are of different tokenizers and cannot be mixed")
    counted = float(sum(meta.tokens for meta in metas.values()))
    vocabulary = next(iter(metas.values())).vocab_size
    return Text(given or counted, vocabulary, "--tokens" if given else f"counted in {', '.join(metas)}")


def _runs(options: BudgetConfig, text: Text, flops: float) -> Iterator[Run]:
    """The run of every shape that gets through at least one step."""
    for fields, model in shapes(text.vocabulary):
        run = _run(fields, model, options, text, flops, LONGEST_SEQUENCE)
        while run.sequence > SHORTEST_SEQUENCE and run.wanted_batch < SEQUENCES_OF_A_BATCH * run.sequence:
            run = _run(fields, model, options, text, flops, run.sequence // 2)
        if run.tokens >= run.batch * run.sequence:
            yield run


def _run(
    fields: dict[str, Any], model: PanguPiConfig, options: BudgetConfig, text: Text, flops: float, sequence: int
) -> Run:
    cost = count_flops(model, sequence)
    tokens, rounds = flops / cost.train_per_token, 1
    if text.tokens is not None and tokens > text.tokens:
        # Enough time for all text once and for a second round over its harder half (docs/methods/tiny_lm.md: rounds).
        first = tokens / (1 + KEPT + SCORING)
        if first >= text.tokens:
            rounds, tokens = 2, first
    seen = tokens * (1 + KEPT * (rounds - 1))
    inner = 3 * (cost.forward_per_token - cost.head) * seen
    wanted = min(batch_tokens(inner), BATCH_WARNING_TOKENS / 2)
    batch = options.ranks * max(1, round(wanted / (sequence * options.ranks)))
    return Run(
        fields=fields | {"max_position_embeddings": sequence},
        model=model,
        parameters=count_parameters(model).total,
        sequence=sequence,
        tokens=tokens,
        rounds=rounds,
        batch=batch,
        wanted_batch=wanted,
        rate=learning_rate(inner),
        flops=cost.train_per_token * tokens * (1 + (KEPT + SCORING) * (rounds - 1)),
        loss=expected_loss(count_parameters(model).total, seen, text.tokens),
        losses=loss_range(count_parameters(model).total, seen, text.tokens),
    )


def with_batch(run: Run, micro_size: int, ranks: int) -> Run:
    """The same run with the nearest batch that is a whole number of micro-batches on every rank."""
    each = max(1, round(run.batch / (ranks * micro_size)))
    return replace(run, batch=each * ranks * micro_size)
