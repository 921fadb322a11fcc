"""The example of docs/add_a_task.md trains, reads digits, and keeps the trainer's promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.command_line import parse
from pretrain.trainer import train
from tests.pretrain.conftest import deepspeed_command, launch, rows

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--telemetry.tensorboard", "false", "--telemetry.progress_bar", "false"]


def test_the_example_reads_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    train(parse(["--config", "examples/digits.yaml", "--output", str(tmp_path), *QUIET])[0])
    last = [row["accuracy"] for row in rows(tmp_path, "train")[-5:]]
    assert sum(last) / len(last) > 0.97 and rows(tmp_path, "valid")[-1]["loss"] < 0.2
    assert len((ROOT / "examples/digits.py").read_text().splitlines()) < 100


@pytest.mark.slow
@pytest.mark.distributed
def test_the_example_on_two_ranks_at_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = ["--config", "examples/digits.yaml", "--steps", "12", "--telemetry.every", "1", "--checkpoint.every", "12"]
    plan = lambda name, *extra: [*base, "--output", str(tmp_path / name), *QUIET, *extra]  # noqa: E731
    train(parse(plan("one"))[0])
    plans = [plan(f"{stage}", "--batch.micro_size", "16", "--engine.zero_stage", str(stage)) for stage in range(4)]
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    command = deepspeed_command("tests/pretrain/train_several.py", str(tmp_path / "plans.json"))
    log = tmp_path / "log"
    assert launch(command, log).wait(timeout=300) == 0, log.read_text()[-3000:]
    expected = [row["loss"] for row in rows(tmp_path / "one", "train")]
    for stage in range(4):
        assert [row["loss"] for row in rows(tmp_path / str(stage), "train")] == pytest.approx(expected, rel=1e-4)
