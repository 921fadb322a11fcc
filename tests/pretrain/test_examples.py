"""The example of docs/add_a_task.md trains and reads digits; test_every_task.py holds it to the trainer's promises."""

from __future__ import annotations

from pathlib import Path

from pretrain.command_line import parse
from pretrain.trainer import train
from tests.pretrain.conftest import rows

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--telemetry.tensorboard", "false", "--telemetry.progress_bar", "false"]


def test_the_example_reads_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    train(parse(["--config", "examples/digits.yaml", "--output", str(tmp_path), *QUIET])[0])
    last = [row["accuracy"] for row in rows(tmp_path, "train")[-5:]]
    assert sum(last) / len(last) > 0.97 and rows(tmp_path, "valid")[-1]["loss"] < 0.2
    assert len((ROOT / "examples/digits.py").read_text().splitlines()) < 100
