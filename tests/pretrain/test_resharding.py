"""Another number of ranks, another ZeRO stage: the run goes on with the same batches, to the same losses and weights.

Every pair of stages and every pair of 1 to 3 ranks, with both optimizers. All runs that have the same number of ranks
are trained by the same ranks; a single one is this process.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.command_line import parse
from pretrain.trainer import train
from tests.pretrain.conftest import rows
from tests.pretrain.forked_ranks import train_on_ranks

RANKS, STAGES = (1, 2, 3), (0, 1, 2, 3)
BATCH, FIRST, STEPS = 12, 3, 6
RANK_PAIRS, STAGE_PAIRS = list(product(RANKS, RANKS)), list(product(STAGES, STAGES))
CHANGES = [
    ((RANK_PAIRS[n % 9][0], before), (RANK_PAIRS[n % 9][1], after), ("adamw", "muon")[n % 2])
    for n, (before, after) in enumerate(STAGE_PAIRS)
]
"""((ranks, stage) of the first part, of the second, optimizer)."""


def arguments(folder: Path, ranks: int, stage: int, optimizer: str, steps: int) -> list[str]:
    return [
        "--task", "tests.pretrain.toy.ToyTask", "--output", str(folder), "--steps", str(steps),
        "--batch.size", str(BATCH), "--batch.micro_size", str(BATCH // ranks), "--engine.zero_stage", str(stage),
        "--optimizer.name", optimizer, "--optimizer.lr", "0.02", "--checkpoint.every", str(FIRST),
        "--telemetry.every", "1", "--telemetry.progress_bar", "false", "--telemetry.tensorboard", "false",
        "--schedule.name", "constant",
    ]  # fmt: skip


def run_all(folder: Path, name: str, plans: list[tuple[int, list[str]]]) -> None:
    """Trains command lines, those of one number of ranks on the same ranks."""
    for ranks in RANKS:
        lines = [line for number, line in plans if number == ranks]
        if ranks == 1:
            with torch._dynamo.config.patch(disable=True):  # Muon would be compiled
                for line in lines:
                    train(parse(line)[0])
            continue
        log = folder / f"{name}{ranks}.log"
        assert train_on_ranks(ranks, lines, log) == [0] * ranks, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every change's run, and the two uninterrupted ones of one rank without ZeRO."""
    folder = tmp_path_factory.mktemp("changed")
    first, second = [], []
    for number, (before, after, optimizer) in enumerate(CHANGES):
        output = folder / str(number)
        first.append((before[0], arguments(output, *before, optimizer, FIRST)))
        second.append((after[0], arguments(output, *after, optimizer, STEPS)))
    for optimizer in ("adamw", "muon"):
        first.append((1, arguments(folder / optimizer, 1, 0, optimizer, STEPS)))
    run_all(folder, "first", first)
    run_all(folder, "second", second)
    return folder


def test_every_pair_of_ranks_and_of_stages_is_there() -> None:
    assert {(before[0], after[0]) for before, after, _ in CHANGES} == set(RANK_PAIRS)
    assert {(before[1], after[1]) for before, after, _ in CHANGES} == set(STAGE_PAIRS)
    assert {optimizer for _, _, optimizer in CHANGES} == {"adamw", "muon"}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(CHANGES)), ids=[f"{a}-{b}-{o}" for a, b, o in CHANGES])
def test_a_changed_run_equals_an_unchanged_one(changed: Path, number: int) -> None:
    run, whole = changed / str(number), changed / CHANGES[number][2]
    assert [row["event"] for row in rows(run, "event")] == ["resume"]
    for kind in ("train", "valid"):
        actual = {row["step"]: row["loss"] for row in rows(run, kind)}
        expected = {row["step"]: row["loss"] for row in rows(whole, kind)}
        steps = range(1, STEPS + 1) if kind == "train" else [STEPS]
        assert [actual[step] for step in steps] == pytest.approx([expected[step] for step in steps], rel=1e-4)
    weights, others = (load_file(path / f"checkpoints/step_{STEPS:08d}/model.safetensors") for path in (run, whole))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert tensor.flatten().tolist() == pytest.approx(others[name].flatten().tolist(), rel=1e-3, abs=1e-5), name
