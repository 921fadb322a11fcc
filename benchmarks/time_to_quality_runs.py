"""One run of `benchmarks/time_to_quality.py`, from its calibration to bits per byte of held-out text.

    calibrate   a run of CALIBRATION_STEPS steps, not counted: seconds of the start, of a step, of a checkpoint
    train       as many steps as fit into the budget, a multiple of POINTS, in one launch of the contender's own command
    score       each of its POINTS checkpoints, by one and the same code, not counted

The clock of a run goes from the launch of its command to the command's end. In: Python, imports, reading data,
building the model, measuring and compiling (with an empty compiler cache), steps, logging, POINTS resumable
checkpoints, the end. Out: calibration, tokenizer and shards, scoring. Validation during the run is switched off.

Bits per byte. A document is scored whole: begin token, its text, cut into windows of the training length; a window's
first input is the last token of the window before it, which was predicted there, so every token of the text is
predicted exactly once, from at most a training length of context. The end token is neither predicted nor counted, and
the begin token is given. The nats of all tokens of a language, over ln 2, over the UTF-8 bytes of its text.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from llama_trainer import count, equal_llama, run_description
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig
from transformers.utils.logging import disable_progress_bar

from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_weights import load_causal_lm
from common.find_model import newest_checkpoints
from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.quickstarts.commands_once import deepspeed_launcher, environment, on_free_port
from tokenizer.load import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
POINTS = 4
"""Points of a curve: checkpoints at 25, 50, 75 and 100 % of the steps."""
CALIBRATION_STEPS = 16
CALIBRATION_SAVES = 5
"""Steps between the checkpoints of a calibration."""
NO_LIMIT = 1e9
CLOSE = 1.25
"""A run may have this many times the steps that its calibration was told, or as much fewer."""
PASSES = 3
"""Calibrations of one run at most."""
BATCH = 8
"""Windows that are scored at once."""


@dataclass(frozen=True)
class Data:
    """What all contenders of one vocabulary train on."""

    tokenizer: Path
    train: tuple[Path, ...]
    """Token shards, one directory a language."""
    vocabulary: int


@dataclass(frozen=True)
class Recipe:
    """What the house would train: the quick start's configuration with a shape, a vocabulary and overrides."""

    arguments: tuple[str, ...]
    """Of pretrain/train.py, all but those of a single run."""
    config: TrainConfig
    text: str
    """The complete YAML."""

    @property
    def shape(self) -> Any:
        """Of our model."""
        return self.config.task.model_config

    @property
    def parameters(self) -> int:
        """Of our model."""
        return count_parameters(self.shape).total

    @property
    def warmup_fraction(self) -> float:
        """Warm-up as a share of the run, which the other contenders take over."""
        schedule = self.config.schedule
        if schedule.warmup_steps is None:
            return schedule.warmup_fraction
        return schedule.warmup_steps / self.config.steps

    @classmethod
    def resolve(cls, config: Path, shape: Path, data: Data, overrides: Sequence[str]) -> Recipe:
        """The recipe with `name=value` overrides. Raises `ConfigurationError` as pretrain/train.py would."""
        named = [
            word for name, _, value in (each.partition("=") for each in overrides) for word in (f"--{name}", value)
        ]
        arguments = (
            *("--config", str(config), "--task.model", str(shape), "--task.train", json.dumps([*map(str, data.train)])),
            *("--task.valid", "{}", *named, "--task.model_overrides.vocab_size", str(data.vocabulary)),
            *("--telemetry.progress_bar", "false"),
        )
        return cls(arguments, *parse(arguments))


@dataclass(frozen=True)
class Pace:
    """What a run costs, in seconds."""

    start: float
    """From the launch to the first step, and from the last step to the end; what the first step takes longer, too."""
    step: float
    save: float
    """One checkpoint."""

    @classmethod
    def measured(cls, stamps: Sequence[float], wall: float, steps: int, every: int) -> Pace:
        """The pace of a run that was left at the end of its last step, before a checkpoint of that one.

        Args:
            stamps: when step 1, 2, ... ended, on any clock; the last ones may be missing.
            wall: seconds from the launch to the end.
            steps: that the run made.
            every: steps between its checkpoints, each written after its step.
        """
        lengths = {step: later - earlier for step, (earlier, later) in enumerate(pairwise(stamps), start=2)}
        step = median(length for number, length in lengths.items() if (number - 1) % every)
        after_save = [length for number, length in lengths.items() if (number - 1) % every == 0]
        save = max(0.0, mean(after_save) - step) if after_save else 0.0
        return cls(max(0.0, wall - steps * step - (steps - 1) // every * save), step, save)

    def steps(self, seconds: float) -> int:
        """The largest multiple of POINTS that fits into so many seconds; 0 if none does."""
        return max(0, math.floor((seconds - self.start - POINTS * self.save) / self.step / POINTS) * POINTS)


class Racer(ABC):
    """A contender with a shape, a vocabulary and a seed."""

    chooses_by_length = False
    """Whether what a step takes depends on how long the run is to be."""

    def __init__(self, recipe: Recipe, data: Data, seed: int, ranks: int) -> None:
        self.recipe, self.data, self.seed, self.ranks = recipe, data, seed, ranks

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Of the model."""

    @abstractmethod
    def samples(self, steps: int) -> int:
        """Sequences of the first `steps` steps, of all ranks."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the result besides text, seconds and seed (JSON-able)."""

    @abstractmethod
    def command(self, folder: Path, steps: int, every: int, calibrating: bool) -> list[str]:
        """The command of a run with a checkpoint at every so many steps; `calibrating` leaves in time."""

    @abstractmethod
    def stamps(self, folder: Path) -> list[float]:
        """When the steps of a calibration ended."""

    @abstractmethod
    def checkpoints(self, folder: Path) -> dict[int, tuple[Path, float]]:
        """Step -> directory of the model, and the time (Unix) at which it was complete."""

    def final(self, checkpoint: Path) -> Path:
        """What a user would take away after the last step: a directory in transformers format."""
        return checkpoint


class Ours(Racer):
    """The house's recipe in the house's trainer."""

    chooses_by_length = True  # pretrain/speed_choice.py

    @property
    def parameters(self) -> int:
        return self.recipe.parameters

    def samples(self, steps: int) -> int:
        return self.recipe.config.batch.samples(steps)

    def identity(self) -> dict[str, Any]:
        recipe = self.recipe.text
        for place in (ROOT, self.data.tokenizer.parent):  # where checkout and data lie decides nothing
            recipe = recipe.replace(f"{place}/", "")
        return {"recipe": recipe, "shape": json.loads(self.recipe.shape.to_json_string())}

    def command(self, folder: Path, steps: int, every: int, calibrating: bool) -> list[str]:
        launcher = deepspeed_launcher(self.ranks) if self.ranks > 1 else [sys.executable]
        left = {"warmup_steps": 1, "timed_steps": CALIBRATION_STEPS - 1, "timed_seconds": NO_LIMIT}
        hook = [{"class_path": "pretrain.planning.bench_hook.BenchHook", "init_args": left}]
        return [
            *(*launcher, str(ROOT / "pretrain" / "train.py"), *self.recipe.arguments, "--seed", str(self.seed)),
            *("--output", str(folder / "run"), "--steps", str(steps)),
            *("--checkpoint.every", str(every), "--checkpoint.keep", str(POINTS)),
            *(("--hooks", json.dumps(hook)) if calibrating else ()),
        ]

    def stamps(self, folder: Path) -> list[float]:
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        return [row["seconds"] for row in map(json.loads, lines) if row["kind"] == "eval"]

    def checkpoints(self, folder: Path) -> dict[int, tuple[Path, float]]:
        found = newest_checkpoints(folder / "run")
        return {int(path.name.removeprefix("step_")): (path, (path / "meta.json").stat().st_mtime) for path in found}

    def final(self, checkpoint: Path) -> Path:
        export = checkpoint.parent / "export"
        command = [sys.executable, "-m", "arch", "export", "--model", str(checkpoint), "--out", str(export)]
        launch(command, checkpoint.parent / "export.log")
        return export


class Theirs(Racer):
    """transformers' LLaMA of equal size in transformers' Trainer."""

    def __init__(self, *shared: Any, blocks: Path, arguments: Mapping[str, Any], **named: Any) -> None:
        super().__init__(*shared, **named)
        self.blocks, self.arguments = blocks, dict(arguments)
        self.model = equal_llama(self.recipe.shape, self.recipe.parameters)

    @property
    def parameters(self) -> int:
        return count(LlamaConfig(**self.model))

    def samples(self, steps: int) -> int:
        arguments = self._arguments(Path(), 1, 1)
        batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * self.ranks
        return steps * batch

    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "arguments": self._arguments(Path(), 1, 1) | {"seed": None, "warmup_steps": None},
                "warmup": self.recipe.warmup_fraction, "length": self.recipe.config.task.sequence_length}  # fmt: skip

    def _arguments(self, folder: Path, steps: int, every: int) -> dict[str, Any]:
        """Of TrainingArguments."""
        batch = self.recipe.config.batch
        on_cpu = not torch.cuda.is_available()
        return {
            "per_device_train_batch_size": batch.micro_size,
            "gradient_accumulation_steps": batch.size // (batch.micro_size * self.ranks),
            "warmup_steps": round(self.recipe.warmup_fraction * steps),
            "use_cpu": on_cpu,
            "ddp_backend": "gloo" if on_cpu else None,
            "report_to": "none",
            "disable_tqdm": True,
            "save_total_limit": POINTS,
            **self.arguments,
            "output_dir": str(folder / "run"),
            "max_steps": steps,
            "save_steps": every,
            "seed": self.seed,
        }

    def command(self, folder: Path, steps: int, every: int, calibrating: bool) -> list[str]:
        run = run_description(
            self.model, self.blocks, self._arguments(folder, steps, every), CALIBRATION_STEPS if calibrating else None
        )
        description = folder / "run.json"
        description.write_text(json.dumps(run, indent=1))
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        script = str(Path(__file__).with_name("llama_trainer.py"))
        return [sys.executable, *(torchrun if self.ranks > 1 else []), script, str(description)]

    def stamps(self, folder: Path) -> list[float]:
        return json.loads((folder / "run" / "stamps.json").read_text())

    def checkpoints(self, folder: Path) -> dict[int, tuple[Path, float]]:
        found = (folder / "run").glob("checkpoint-*")
        times = {path: (path / "trainer_state.json").stat().st_mtime for path in found}
        return {int(path.name.removeprefix("checkpoint-")): (path, time) for path, time in times.items()}


def launch(command: Sequence[str], log: Path, ranks: int = 1) -> tuple[float, float]:
    """Runs a command; returns when it began (Unix) and the seconds to its end. Its output goes to `log`.

    The ranks share the cores, unless OMP_NUM_THREADS says otherwise; no compiled kernel of an earlier run is used.

    Raises:
        RuntimeError: it failed.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // ranks))}
    log.parent.mkdir(parents=True, exist_ok=True)
    cache = log.with_suffix(".inductor")
    own = {**threads, **environment(), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    with log.open("w") as output:
        began, clock = time.time(), time.perf_counter()
        code = subprocess.run(on_free_port(command), env=own, stdout=output, stderr=output, check=False).returncode
        seconds = time.perf_counter() - clock
    shutil.rmtree(cache, ignore_errors=True)
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"a run failed with exit code {code} ({' '.join(last)}); its output is in {log}")
    return began, seconds


def calibrate(racer: Racer, folder: Path, seconds: float, guess: int = 0) -> tuple[Pace, int]:
    """The pace of a run, and the steps that fit into its budget.

    Where speed is chosen by the length of the run, it is repeated with the length it found until the two agree. If they
    do not, the run gets the fewer steps, and does not use up its seconds: what was measured holds for no more.

    Args:
        racer: who is to run.
        folder: for the calibration; the log of the last one stays.
        seconds: the budget.
        guess: steps that an earlier calibration found.

    Raises:
        ValueError: not even POINTS steps fit.
    """
    shortest = CALIBRATION_STEPS + 1  # a run must not end before it is left
    for _ in range(PASSES if racer.chooses_by_length else 1):
        told = max(guess, shortest)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = racer.command(folder, told, CALIBRATION_SAVES, calibrating=True)
        _, wall = launch(command, folder / "log.txt", racer.ranks)
        pace = Pace.measured(racer.stamps(folder), wall, CALIBRATION_STEPS, CALIBRATION_SAVES)
        fitting = pace.steps(seconds)
        guess = max(fitting, shortest)
        if agreed := not racer.chooses_by_length or max(told, guess) <= CLOSE * min(told, guess):
            break
    shutil.rmtree(folder / "run")
    steps = fitting if agreed else min(fitting, told // POINTS * POINTS)
    if not steps:
        raise ValueError(
            f"{seconds:g} s are not enough: the start takes {pace.start:.1f} s, {POINTS} steps "
            f"{POINTS * pace.step:.1f} s and {POINTS} checkpoints {POINTS * pace.save:.1f} s; raise --seconds"
        )
    return pace, steps


def train(racer: Racer, folder: Path, steps: int) -> list[tuple[int, float, Path]]:
    """One run; returns (step, seconds since the launch, directory) of its POINTS checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began, wall = launch(
        racer.command(folder, steps, steps // POINTS, calibrating=False), folder / "log.txt", racer.ranks
    )
    found = racer.checkpoints(folder)
    wanted = [steps * point // POINTS for point in range(1, POINTS + 1)]
    if sorted(found) != wanted:
        raise RuntimeError(f"{folder}: expected checkpoints of the steps {wanted}, found {sorted(found)}; see log.txt")
    return [(step, wall if step == steps else found[step][1] - began, found[step][0]) for step in wanted]


def windows(tokenizer: Any, text: str, length: int) -> Iterator[list[int]]:
    """The begin token and the text's tokens in pieces of at most `length` + 1 that share one token with the next."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = [begin, *tokenizer.encode(text, add_special_tokens=False)]
    for start in range(0, len(ids) - 1, length):
        yield ids[start : start + length + 1]


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, texts: Sequence[str], length: int) -> float:
    """Bits that the model needs for the texts, per UTF-8 byte; the rule is at the top.

    Args:
        model: maps `input_ids` [B, S] to an output with `logits` [B, S, V]; causal, so that what stands behind a window
            to fill its row changes nothing.
        tokenizer: has `encode`, `bos_token_id` and `eos_token_id`.
        texts: the documents.
        length: S, at most.
    """
    pieces = sorted((piece for text in texts for piece in windows(tokenizer, text, length)), key=len)
    nats = 0.0
    for first in range(0, len(pieces), BATCH):
        batch = pieces[first : first + BATCH]
        longest = max(map(len, batch))
        ids_BT = torch.tensor([[*piece, *[0] * (longest - len(piece))] for piece in batch])
        labels_BS = torch.tensor([[*piece[1:], *[-100] * (longest - len(piece))] for piece in batch])
        logits_BSV = model(input_ids=ids_BT[:, :-1]).logits.float()
        nats += float(cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), reduction="sum").double())
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def score(directory: Path, tokenizer: Path, texts: Mapping[str, Sequence[str]], length: int) -> dict[str, float]:
    """Bits per byte of each language, of any contender's model directory, in float32 on the CPU."""
    disable_progress_bar()
    model, encoder = load_causal_lm(directory, dtype="float32").eval(), load_tokenizer(tokenizer)
    return {language: bits_per_byte(model, encoder, each, length) for language, each in texts.items()}
