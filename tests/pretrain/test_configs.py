"""The configurations for the real thing: the shapes are the paper's, and a step runs at a reduced width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from arch import count_parameters, load_model_config
from pretrain.command_line import parse
from pretrain.trainer import train
from tests.pretrain.conftest import ROOT, TINY, rows

PRO = sorted((ROOT / "configs" / "pangu_pi").glob("*_pro.yaml"))


def pro_model(path: Path) -> dict[str, Any]:
    """Fields of the model that a training YAML names."""
    content = yaml.safe_load(path.read_text())
    return yaml.safe_load((ROOT / content["task"]["init_args"]["model"]).read_text())


def test_the_shapes_are_the_papers():
    plain = {"series_terms": 1, "shortcut_count": 0}
    sizes = {
        path.stem: (count_parameters(load_model_config(model | plain)).total, model["vocab_size"])
        for path in PRO
        for model in [pro_model(path)]
    }
    assert sizes == {"1b_pro": (990_981_376, 48_000), "1_5b_pro": (1_500_080_128, 48_000)}


@pytest.mark.parametrize("path", PRO, ids=lambda path: path.stem)
def test_one_step_at_a_reduced_width(path: Path, corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    reduced = {**TINY, "num_hidden_layers": pro_model(path)["num_hidden_layers"]}
    arguments = {
        "task.train": [str(corpus["train"])],
        "task.initial_weights": None,
        "task.sequence_length": 32,
        "task.model_overrides": {name: value for name, value in reduced.items() if name != "series_terms"},
        "output": str(tmp_path / "run"),
        "steps": 1,
        "batch.size": 8,
        "rounds.count": 1,
        "engine.compile": False,
        "engine.precision": "fp32",
        "loader.workers": 0,
        "telemetry.tensorboard": False,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", json.dumps(value).strip('"'))]
    config, _ = parse(["--config", str(path), *words])
    assert config.optimizer.lr is None and config.schedule.warmup_fraction == 0.03
    train(config)
    assert rows(tmp_path / "run", "train")[-1]["step"] == 1
