"""Every task keeps the same promises (DESIGN section 8): promises 2, 5 and 7 for whatever the trainer trains.

    killed with SIGKILL on two ranks, also inside a checkpoint write, a run continues to the bit
    two ranks at every stage train like one process
    a checkpoint loads without the run, to the same validation loss

Two real gloo ranks through the deepspeed launcher. A launch trains one run after the other, because starting ranks
takes longer than training these models; runs that are killed have processes of their own in it.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.trainer import train
from tests.pretrain.conftest import deepspeed_command, launch, rank_processes, rows
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

    def start(self, kind: str, which: list[tuple[str, int]], log: Path) -> subprocess.Popen:
        """Two ranks that train these runs one after the other; the killed ones apart, and each once more."""
        plans, apart = self.folder / f"{kind}.json", kind == "killed"
        saving = {} if apart else {"checkpoint__every": STEPS}
        lines = [self.command_line(kind, case, stage, **saving) for case, stage in which for _ in range(1 + apart)]
        plans.write_text(json.dumps(lines))
        words = ["--apart"] * apart
        return launch(deepspeed_command("tests/pretrain/train_several.py", *words, str(plans)), log)


@pytest.fixture(scope="module")
def runs(corpus: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every task at every stage, trained on two ranks without interruption."""
    folder = tmp_path_factory.mktemp("runs")
    made = Runs(folder, Materials(folder, corpus))
    log = folder / "whole.log"
    process = made.start("whole", [(case, stage) for case in CASES for stage in STAGES], log)
    assert process.wait(timeout=SECONDS) == 0, log.read_text()[-3000:]
    yield made


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


def kill_during(process: subprocess.Popen, run: Path, number: int) -> None:
    """SIGKILLs a run on all ranks: at a random moment after some step, or inside its second checkpoint write or a later
    one, in turns."""
    deadline = time.monotonic() + SECONDS
    draw = random.Random(number)
    after = draw.randint(EVERY, STEPS - 3)
    while time.monotonic() < deadline and process.poll() is None:
        if number % 2:
            if any(path.name > f"step_{EVERY + 1:08d}" for path in (run / "checkpoints").glob("step_*.tmp")):
                break
        elif (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") > after:
            time.sleep(draw.random() * 0.1)
            break
        time.sleep(0.0005)
    assert process.poll() is None, f"{run.name}: the launch ended before it could be killed"
    for rank in rank_processes(process.pid):
        for training in rank.children():
            training.kill()


@pytest.mark.slow
@pytest.mark.distributed
def test_killed_and_resumed_equals_uninterrupted(runs):
    inside = 0
    log = runs.folder / "killed.log"
    process = runs.start("killed", KILLS, log)
    for case, stage in KILLS:
        run = runs.path("killed", case, stage)
        kill_during(process, run, stage)
        assert not (run / "checkpoints" / f"step_{STEPS:08d}").exists()
        inside += bool(list((run / "checkpoints").glob("*.tmp")))
    assert inside > 0, "no run was killed inside a checkpoint write"
    assert process.wait(timeout=SECONDS) == 0, log.read_text()[-3000:]

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
