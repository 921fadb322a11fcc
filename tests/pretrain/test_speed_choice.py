"""`auto` precision and compilation: decided by the run's length and by measurements that are given here, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pretrain.speed_choice
from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.errors import ConfigurationError
from pretrain.ranks.world import World
from pretrain.speed_choice import NAME, SpeedChoice, seconds_of_micro_batch, settle
from pretrain.trainer import train
from tests.pretrain.conftest import rows

ALONE = World.alone("cpu")
LONG = 1e-12
"""TFLOP/s of a machine on which even the toy takes hours."""
ON_AMX = {("fp32", False): 1.0, ("bf16", False): 0.714, ("fp32", True): 0.784, ("bf16", True): 0.519}
"""Seconds of a micro-batch in the proportions that were measured on two quiet cores with AMX."""


def toy(output: Path, **settings: Any) -> TrainConfig:
    options = {
        "task": "tests.pretrain.toy.ToyTask", "output": output, "steps": 1000, "batch.size": 8, "batch.micro_size": 4,
        "optimizer.lr": 0.01, "telemetry.tensorboard": "false", "telemetry.progress_bar": "false",
        **{name.replace("__", "."): value for name, value in settings.items()},
    }  # fmt: skip
    return parse([word for name, value in options.items() for word in (f"--{name}", str(value))])[0]


class Stopwatch:
    """Measurements that are known beforehand."""

    def __init__(self, seconds: dict[tuple[str, bool], float | Exception]) -> None:
        self.seconds, self.asked = seconds, []

    def __call__(self, config: TrainConfig, world: World, precision: str, compiled: bool) -> float:
        self.asked.append((precision, compiled))
        found = self.seconds[precision, compiled]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain.speed_choice, "has_bf16", lambda: True)


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain.speed_choice, "has_bf16", lambda: False)


def test_a_short_run_is_not_measured(tmp_path, bf16):
    watch = Stopwatch({})
    choice = settle(toy(tmp_path), ALONE, 1.0, watch)
    assert (choice.precision, choice.compile, watch.asked) == ("fp32", False, [])
    assert "not worth measuring" in choice.describe()["speed"]


def test_a_long_run_takes_the_fastest_and_says_the_ratios(tmp_path, bf16):
    watch = Stopwatch(ON_AMX)
    choice = settle(toy(tmp_path), ALONE, LONG, watch)
    assert (choice.precision, choice.compile) == ("bf16", True)
    assert watch.asked == [("fp32", False), ("bf16", False), ("bf16", True)]
    assert "fp32 1.00x, bf16 1.40x, bf16 compiled 1.93x" in choice.reason
    assert json.loads((tmp_path / NAME).read_text())["seconds"]["bf16, compiled"] == 0.519


def test_bf16_is_measured_only_where_the_processor_has_it(tmp_path, no_bf16):
    watch = Stopwatch(ON_AMX)
    choice = settle(toy(tmp_path), ALONE, LONG, watch)
    assert (choice.precision, choice.compile) == ("fp32", True)
    assert watch.asked == [("fp32", False), ("fp32", True)]


def test_compiling_is_tried_only_where_it_can_repay_itself(tmp_path, no_bf16):
    """1,000 steps of two micro-batches: what is saved of 0.1 s each is 40 s, less than compiling takes."""
    watch = Stopwatch({("fp32", False): 0.1})
    choice = settle(toy(tmp_path), ALONE, LONG, watch)
    assert not choice.compile and "200 s of training would not repay compiling" in choice.reason


def test_a_setting_that_is_not_faster_or_does_not_work_is_not_taken(tmp_path, bf16):
    refused = ConfigurationError("the codebook needs float32")
    watch = Stopwatch({("fp32", False): 1.0, ("bf16", False): refused, ("fp32", True): 0.98})
    choice = settle(toy(tmp_path), ALONE, LONG, watch)
    assert (choice.precision, choice.compile) == ("fp32", False)
    assert "bf16 cannot be used: the codebook needs float32" in choice.reason


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ({"engine__precision": "fp32"}, [("fp32", False), ("fp32", True)], ("fp32", True)),
        ({"engine__compile": "true"}, [("fp32", True), ("bf16", True)], ("bf16", True)),
        ({"engine__compile": "false"}, [("fp32", False), ("bf16", False)], ("bf16", False)),
        ({"engine__compile": "true", "engine__precision": "fp32"}, [], ("fp32", True)),
    ],
)
def test_what_the_configuration_says_is_not_measured(tmp_path, bf16, settings, asked, expected):
    watch = Stopwatch(ON_AMX)
    choice = settle(toy(tmp_path, **settings), ALONE, LONG, watch)
    assert watch.asked == asked and (choice.precision, choice.compile) == expected


def test_a_continued_run_keeps_its_choice_and_never_measures(tmp_path, bf16):
    config = toy(tmp_path, steps=2, checkpoint__every=2, validation__every=2)
    train(config)
    kept = SpeedChoice("bf16", False, "auto, measured: bf16 1.40x")
    content = {"precision": kept.precision, "compile": kept.compile, "reason": kept.reason, "seconds": {}}
    (tmp_path / NAME).write_text(json.dumps(content))
    choice = settle(config, ALONE, LONG, Stopwatch({}))
    assert (choice.precision, choice.compile) == ("bf16", False) and "chosen when the run began" in choice.reason
    over = replace(config, checkpoint=replace(config.checkpoint, resume=False))
    assert settle(over, ALONE, LONG, Stopwatch(ON_AMX)).compile is False  # a run that starts over is measured anew


@pytest.mark.long
def test_a_run_that_measured_is_continued_to_the_bit(tmp_path, bf16, monkeypatch):
    watch = Stopwatch({("fp32", False): 1e-3, ("bf16", False): 0.5e-3})
    monkeypatch.setattr(pretrain.speed_choice, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(pretrain.speed_choice, "seconds_of_micro_batch", watch)
    settings = {"checkpoint__every": 2, "validation__every": 99, "schedule__name": "constant", "telemetry__every": 1}
    train(toy(tmp_path / "whole", steps=4, **settings))
    assert json.loads((tmp_path / "whole" / "audit.json").read_text())["precision"] == "bf16"
    train(toy(tmp_path / "parts", steps=2, **settings))
    watch.seconds = {("fp32", False): 0.5e-3, ("bf16", False): 1e-3}  # the machine is busy with something else now
    train(toy(tmp_path / "parts", steps=4, **settings))
    assert "chosen when the run began" in json.loads((tmp_path / "parts" / "audit.json").read_text())["speed"]
    whole, parts = ([row["loss"] for row in rows(tmp_path / name, "train")] for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 4


def test_a_run_from_before_there_were_choices_stays_as_it_was(tmp_path, bf16):
    config = toy(tmp_path, steps=2, checkpoint__every=2, validation__every=2)
    train(config)
    assert json.loads((tmp_path / "audit.json").read_text())["precision"] == "fp32"
    (tmp_path / NAME).unlink()
    choice = settle(config, ALONE, LONG, Stopwatch({}))
    assert (choice.precision, choice.compile) == ("fp32", False)


def test_a_file_that_is_no_choice_is_refused(tmp_path):
    config = toy(tmp_path, steps=2, checkpoint__every=2, validation__every=2)
    train(config)
    (tmp_path / NAME).write_text("{}")
    with pytest.raises(ConfigurationError, match="not a choice"):
        settle(config, ALONE, LONG, Stopwatch({}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_leaves_no_trace(tmp_path, precision):
    config, state = toy(tmp_path), torch.get_rng_state()
    assert seconds_of_micro_batch(config, ALONE, precision, compiled=False) > 0
    assert torch.equal(torch.get_rng_state(), state)
