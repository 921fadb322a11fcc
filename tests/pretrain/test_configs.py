"""The configurations for the real thing: the shapes are the paper's, and a step runs at a reduced width."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from deepspeed.runtime.config import DeepSpeedConfig

from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_config import load_model_config
from pretrain import engine, precision, tasks
from pretrain.command_line import parse
from pretrain.errors import ConfigurationError
from pretrain.trainer import train
from tests.pretrain.conftest import ROOT, TINY, rows

PRO = sorted((ROOT / "configs" / "pangu_pi" / "runs").glob("*_pro.yaml"))


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


class Gpu:
    """What is asked of an accelerator before there is a model."""

    def device_name(self) -> str:
        return "cuda"

    def is_bf16_supported(self) -> bool:
        return True


def runs() -> list[Path]:
    """Every configuration that train.py reads."""
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    contents = {path: yaml.safe_load(path.read_text()) for path in files}
    return [path for path, content in contents.items() if isinstance(content, dict) and {"task", "steps"} <= {*content}]


def test_the_runs_are_found() -> None:
    found = {path.name for path in runs()}
    assert len(runs()) >= 18 and {"quickstart.yaml", "drawn_cpu.yaml", "gpu_train.yaml", "1b_pro.yaml"} <= found


def test_every_run_names_its_optimizer() -> None:
    """So that a task's new default changes no published table and no restated paper."""
    named = {path: yaml.safe_load(path.read_text()).get("optimizer", {}).get("name") for path in runs()}
    assert {path.name for path, name in named.items() if name not in ("adamw", "muon")} == set()


def test_the_recipe_tells_what_auto_takes() -> None:
    """Every task of ours stands in the page's table with its own default."""
    told = dict(re.findall(r"^\| `(\w+Task)` \| (\w+) \|", (ROOT / "docs" / "recipe.md").read_text(), re.MULTILINE))
    ours = {name for name in tasks.__all__ if name.endswith("Task") and name not in ("Task", "DecoderTask")}
    assert told == {name: getattr(tasks, name).default_optimizer for name in ours}


@pytest.mark.parametrize("path", runs(), ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_run_can_begin_on_a_gpu(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are meant for a CPU too: bf16 is what `auto` is there, and DeepSpeed takes what is derived."""
    monkeypatch.chdir(ROOT)
    for module in (precision, engine):
        monkeypatch.setattr(module, "get_accelerator", Gpu)
    config, _ = parse(["--config", str(path), *needed(path, tmp_path)])
    derived = engine.deepspeed_config(config, 1, 10**9)
    assert precision.resolve_precision(config) == ("fp32" if config.engine.precision == "fp32" else "bf16")
    stage = config.engine.zero_stage
    assert derived["bf16"]["enabled"] == (stage > 0 and config.engine.precision != "fp32")
    zero = derived["zero_optimization"]
    assert zero.get("overlap_comm", False) == (stage in (1, 2))
    assert zero["reduce_bucket_size"] == (50_000_000 if stage in (1, 2) else 500_000_000)
    assert DeepSpeedConfig(derived).gradient_accumulation_steps == config.batch.size // config.batch.micro_size


def needed(path: Path, folder: Path) -> list[str]:
    """What the comment at the top, or the grid of the runs, says that is to be filled in."""
    given = yaml.safe_load(path.read_text())["task"]["init_args"]
    words = ["--output", "runs/x"]
    if not given.get("train") and "synthetic" not in given:
        words += ["--task.train", '["data"]']
    if "bpe" in given:
        (folder / "bpe.txt.gz").touch()
        words += ["--task.bpe", str(folder / "bpe.txt.gz"), "--task.clip", str(folder)]
    return words


def test_a_cpu_overlaps_nothing_and_small_models_have_small_buckets() -> None:
    config, _ = parse(["--task", "tests.pretrain.toy.ToyTask", "--output", "x", "--steps", "1"])
    zero = engine.deepspeed_config(config, 1, 10**9, accelerated=False)["zero_optimization"]
    assert "overlap_comm" not in zero and zero["reduce_bucket_size"] == 500_000_000
    assert engine.deepspeed_config(config, 1, 1001, accelerated=True)["zero_optimization"]["reduce_bucket_size"] == 1008


@pytest.mark.parametrize(
    ("raw", "path", "field"),
    [
        ({"optimizer": {"type": "Muon", "params": {"lr": 0.1}}}, "optimizer", "optimizer.name"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", "engine.zero_stage"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "optimizer.clip"),
        ({"fp16": {"enabled": True}}, "fp16", "engine.precision"),
    ],
)
def test_raw_settings_that_a_field_decides_are_refused(raw: dict[str, Any], path: str, field: str) -> None:
    words = ["--task", "tests.pretrain.toy.ToyTask", "--output", "x", "--steps", "1", "--engine.deepspeed"]
    config, _ = parse([*words, json.dumps(raw)])
    with pytest.raises(ConfigurationError, match=f"engine.deepspeed sets {path}, which follows from {field}; leave"):
        engine.deepspeed_config(config, 1, 10)
    config, _ = parse([*words, '{"zero_optimization": {"reduce_scatter": false}, "bf16": null}'])
    assert engine.deepspeed_config(config, 1, 10)["zero_optimization"]["reduce_scatter"] is False
