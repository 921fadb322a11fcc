"""Weight decay and Muon's momentum that move: their courses, that every stage's optimizer reads them, and resuming."""

from __future__ import annotations

import shutil

import pytest
import torch

from pretrain.config import OptimizerConfig
from pretrain.errors import ConfigurationError
from pretrain.schedule import Hyperparameters
from tests.pretrain.conftest import rows
from tests.pretrain.test_guards import final_weights, run, toy
from tests.pretrain.test_muon import engine_of, step

MOVING = [
    *("--optimizer.name", "muon", "--optimizer.weight_decay", "0.5", "--optimizer.weight_decay_schedule", "linear"),
    *("--optimizer.muon_momentum_warmup_steps", "6", "--optimizer.muon_momentum_start", "0.5"),
]


def test_courses_of_weight_decay():
    course = lambda name, *steps: [  # noqa: E731
        OptimizerConfig(weight_decay_schedule=name).decay_factor(step, 101, rate=0.3) for step in steps
    ]
    assert course("constant", 0, 50, 100) == [1, 1, 1]
    assert course("linear", 0, 25, 50, 100, 200) == [1, 0.75, 0.5, 0, 0]
    assert course("cosine", 0, 50, 100) == pytest.approx([1, 0.5, 0])
    assert course("cosine", 25) == pytest.approx([0.5 + 0.5**1.5])
    assert course("with_lr", 0, 50, 100) == [0.3] * 3


def test_momentum_warms_up_once():
    warming = OptimizerConfig(muon_momentum_warmup_steps=300)
    assert [warming.momentum(step) for step in (0, 150, 300, 10**6)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert OptimizerConfig(muon_momentum=0.9).momentum(0) == 0.9


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("muon_momentum_start", "1", "optimizer.muon_momentum_start has 1.0; it must be at least 0 and below 1"),
        ("muon_momentum_warmup_steps", "-1", "optimizer.muon_momentum_warmup_steps is -1; it must be at least 0"),
        ("weight_decay_schedule", "quadratic", "weight_decay_schedule"),
        ("weight_decay_sched", "cosine", "optimizer.weight_decay_schedule"),
    ],
)
def test_wrong_values_are_refused(tmp_path, field, value, message):
    with pytest.raises(ConfigurationError, match=message):
        run(toy(tmp_path, f"--optimizer.{field}", value))


def test_a_warm_up_of_the_momentum_does_not_fall(tmp_path):
    falling = ("--optimizer.muon_momentum", "0.8", "--optimizer.muon_momentum_warmup_steps", "3")
    with pytest.raises(ConfigurationError, match=r"muon_momentum_start is 0\.85, above muon_momentum \(0\.8\)"):
        run(toy(tmp_path, *falling))


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_reads_what_is_set(stage, name):
    """Half of a decay of 0.5 is one of 0.25, to the bit, and a momentum that is set is one that was configured."""

    def weights(decay: str, momentum: str, now: Hyperparameters) -> dict[str, torch.Tensor]:
        words = ("--optimizer.name", name, "--optimizer.weight_decay", decay, "--optimizer.muon_momentum", momentum)
        engine = engine_of(stage, *words)
        for number in range(3):
            engine.set_hyperparameters(now)
            assert step(engine, number)
        state = engine.state_dict()
        engine.close()
        return state or {}

    moved = weights("0.5", "0.95", Hyperparameters(1, 0.5, 0.5))
    asked = weights("0.25", "0.5", Hyperparameters(1, 1, 0.5))
    more_decay = weights("0.5", "0.5", Hyperparameters(1, 1, 0.5))
    other_momentum = weights("0.25", "0.95", Hyperparameters(1, 1, 0.95))
    for matrix in ("0.weight", "3.weight"):
        assert torch.equal(moved[matrix], asked[matrix]) and not torch.equal(moved[matrix], more_decay[matrix])
        assert torch.equal(moved[matrix], other_momentum[matrix]) == (name == "adamw")


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_resumed_run_is_the_whole_one(tmp_path, stage):
    arguments = [*MOVING, "--engine.zero_stage", str(stage), "--checkpoint.keep", "9"]
    run(toy(tmp_path / "whole", *arguments))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in ("step_00000006", "step_00000007"):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / later)
    run(toy(tmp_path / "cut", *arguments))
    assert [row["event"] for row in rows(tmp_path / "cut", "event")] == ["resume"]
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    logged = rows(tmp_path / "whole", "train")
    assert [row["weight_decay"] for row in logged] == pytest.approx([0.5 * (1 - step / 6) for step in range(7)])
    assert [row["muon_momentum"] for row in logged] == pytest.approx([0.5 + 0.45 * step / 6 for step in range(7)])


def test_what_does_not_move_is_not_logged(tmp_path):
    run(toy(tmp_path, steps=1))
    assert not {"weight_decay", "muon_momentum"} & rows(tmp_path, "train")[0].keys()
