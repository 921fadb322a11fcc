"""Every task keeps the same promises.

    killed with SIGKILL on two ranks, also inside a checkpoint write, a run continues to the bit
    two ranks at every stage train like one process
    a checkpoint loads without the run, to the same validation loss

Two real gloo ranks, forked; those that are not to be killed train one run after the other.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.trainer import train
from tests.pretrain.conftest import rows
from tests.pretrain.forked_ranks import start_ranks, train_on_ranks
from tests.pretrain.task_cases import CASES, EVERY, STEPS, Materials, arguments

STAGES = range(4)
KILLS = [("language", 2), ("sentences", 3), ("images", 0), ("words", 2), ("captioned_words", 1), ("digits", 3)]
"""Runs that are killed: every task, and every stage. At odd stages inside a checkpoint write.

At stage 3 only those whose parameters can be halved: the last share of an odd number of values ends in memory that
nobody writes or reads, which no two runs have alike."""
SECONDS = 900


@dataclass(frozen=True)
class Runs:
    """All runs of this module, by kind."""

    folder: Path
    materials: Materials

    def path(self, kind: str, case: str, stage: int) -> Path:
        return self.folder / kind / f"{case}{stage}"

    def command_line(self, kind: str, case: str, stage: int, **changes: int) -> list[str]:
        return arguments(case, self.materials, self.path(kind, case, stage), engine__zero_stage=stage, **changes)


@pytest.fixture(scope="module")
def runs(corpus: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every task at every stage, trained on two ranks without interruption.

    Stage 3 last: DeepSpeed leaves a slower linear layer behind.
    """
    folder = tmp_path_factory.mktemp("runs")
    made = Runs(folder, Materials(folder, corpus))
    log = folder / "whole.log"
    lines = [made.command_line("whole", case, stage, checkpoint__every=STEPS) for stage in STAGES for case in CASES]
    assert train_on_ranks(2, lines, log, SECONDS) == [0, 0], log.read_text()[-3000:]
    return made


def states(run: Path) -> dict[str, object]:
    """Everything the last checkpoint holds: whole weights (bytes) and the engine's tensors of every rank."""
    final = run / "checkpoints" / (run / "checkpoints" / "latest").read_text()
    found: dict[str, object] = {"model": (final / "model.safetensors").read_bytes()}
    for path in sorted((final / "engine").glob("*.pt")):
        flatten(torch.load(path, weights_only=False), path.name, found)  # written by this very test
    return found


def flatten(value: object, name: str, into: dict[str, object]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            flatten(item, f"{name}/{key}", into)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            flatten(item, f"{name}/{index}", into)
    elif isinstance(value, torch.Tensor):
        into[name] = value


def kill_during(ranks: Sequence[BaseProcess], run: Path, number: int) -> None:
    """SIGKILLs all ranks of a run: at a random moment after some step, or inside its second checkpoint write or a later
    one, in turns."""
    deadline = time.monotonic() + SECONDS
    draw = random.Random(number)
    after = draw.randint(EVERY, STEPS - 3)
    while time.monotonic() < deadline and all(rank.is_alive() for rank in ranks):
        if number % 2:
            if any(path.name > f"step_{EVERY + 1:08d}" for path in (run / "checkpoints").glob("step_*.tmp")):
                break
        elif (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") > after:
            time.sleep(draw.random() * 0.1)
            break
        time.sleep(0.0005)
    assert all(rank.is_alive() for rank in ranks), f"{run.name}: it ended before it could be killed"
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
def test_killed_and_resumed_equals_uninterrupted(runs):
    inside = 0
    log = runs.folder / "killed.log"
    for case, stage in KILLS:
        run, line = runs.path("killed", case, stage), runs.command_line("killed", case, stage)
        kill_during(start_ranks(2, [line], log), run, stage)
        assert not (run / "checkpoints" / f"step_{STEPS:08d}").exists()
        inside += bool(list((run / "checkpoints").glob("*.tmp")))
        assert train_on_ranks(2, [line], log, SECONDS) == [0, 0], log.read_text()[-3000:]
    assert inside > 0, "no run was killed inside a checkpoint write"

    for case, stage in KILLS:
        whole, killed = (runs.path(kind, case, stage) for kind in ("whole", "killed"))
        assert [row["event"] for row in rows(killed, "event")] == ["resume"], f"{case} at stage {stage}"
        for kind in ("train", "valid"):
            pairs = zip(rows(whole, kind), rows(killed, kind), strict=True)
            for left, right in pairs:
                assert (left["step"], left["loss"]) == (right["step"], right["loss"]), f"{case} at stage {stage}"
        expected, actual = states(whole), states(killed)
        assert expected.keys() == actual.keys() and len(expected) > 5
        different = [
            name
            for name, value in expected.items()
            if not (torch.equal(value, actual[name]) if isinstance(value, torch.Tensor) else value == actual[name])
        ]
        assert not different, f"{case} at stage {stage}: {different[:5]}"


@pytest.fixture(scope="module")
def alone(runs) -> dict[str, TrainConfig]:
    """Every task trained by this process alone."""
    configs = {}
    for case in CASES:
        output = runs.path("alone", case, 0)
        configs[case], _ = parse(arguments(case, runs.materials, output, engine__zero_stage=0, batch__micro_size=8))
        train(configs[case])
    return configs


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_at_every_stage_train_like_one(runs, alone, case):
    for kind in ("train", "valid"):
        expected = [row["loss"] for row in rows(Path(alone[case].output), kind)]
        assert len(expected) == {"train": STEPS, "valid": 2}[kind]
        for stage in STAGES:
            actual = [row["loss"] for row in rows(runs.path("whole", case, stage), kind)]
            assert actual == pytest.approx(expected, rel=1e-3), f"stage {stage}"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_loads_without_its_run_to_the_same_loss(runs, alone, case):
    task = alone[case].task
    for stage in (0, 3):
        run = runs.path("whole", case, stage)
        model = task.load_model(run / "checkpoints" / f"step_{STEPS:08d}").eval()
        for name, source in task.validation_sources().items():
            samples = [source.sample(index) for index in range(min(8, len(source)))]
            with torch.no_grad():
                outputs = [task.loss(model, task.collate([sample])) for sample in samples]
            total, weight = (
                np.sum([float(value) for value in values])
                for values in zip(*((output.total, output.per_sample_weight.sum()) for output in outputs), strict=True)
            )
            assert total / weight == pytest.approx(rows(run, "valid")[-1][f"loss/{name}"], rel=1e-4)
