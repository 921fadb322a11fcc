"""Weights & Biases: which runs are one run, with a module that stands for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.config import TelemetryConfig
from pretrain.monitoring.status_file import RunStatus
from pretrain.monitoring.telemetry import Telemetry


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The arguments of every `wandb.init`."""
    calls: list[dict] = []

    def init(**arguments: object) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return calls


def start(folder: Path) -> None:
    """What a run does when it starts or resumes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = TelemetryConfig(tensorboard=False, wandb_project="project", progress_bar=False)
    telemetry = Telemetry(folder, config, 1, True, RunStatus(folder, 1, 1, False))
    telemetry.open(0)
    telemetry.close()


def test_runs_are_told_apart_by_their_folder_and_go_on_where_it_moves(started: list[dict], tmp_path: Path) -> None:
    for cell in ("a/seed_0/train", "b/seed_0/train", "b/seed_1/train", "a/seed_0/train"):
        start(tmp_path / cell)
    shutil.move(tmp_path / "b" / "seed_1", tmp_path / "elsewhere")
    start(tmp_path / "elsewhere" / "train")
    shutil.rmtree(tmp_path / "a")
    start(tmp_path / "a/seed_0/train")
    first, second, third, resumed, moved, anew = (call["id"] for call in started)
    assert len({first, second, third, anew}) == 4
    assert resumed == first and moved == third
    assert all(call["resume"] == "allow" and set(call["id"]) <= set("0123456789abcdef") for call in started)
    assert [call["name"] for call in started[:3]] == ["a/seed_0/train", "b/seed_0/train", "b/seed_1/train"]
