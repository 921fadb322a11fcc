"""`python -m pretrain plan`: what it says of a run that has no data, no weights and no GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pretrain import __main__ as front_door
from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.engine import Engine
from pretrain.errors import ConfigurationError
from pretrain.monitoring.device_peaks import KNOWN_BF16_TFLOPS
from pretrain.planning import plan
from pretrain.planning.accelerators import SHEETS, find_device
from pretrain.planning.activation_memory import blank_model
from pretrain.planning.options import PlanConfig
from pretrain.planning.plan import make_plan
from pretrain.planning.plan_report import describe
from tests.pretrain.conftest import ROOT, TINY

LENGTH = 32


def words(folder: Path, **overrides: str) -> list[str]:
    """A run of a model with a large vocabulary, whose shards do not exist."""
    shape = folder / "shape.yaml"
    shape.write_text(json.dumps(TINY | {"vocab_size": 70_000, "tie_word_embeddings": False}))
    settings = {
        "task": "pretrain.tasks.LanguageModelTask", "task.model": str(shape), "task.train": '["nowhere"]',
        "task.sequence_length": str(LENGTH), "task.loss_chunk_elements": "2240000", "output": "nowhere", "steps": "10",
        "batch.size": "64", "batch.micro_size": "4", "checkpoint.keep": "2",
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in overrides.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def config(folder: Path, **overrides: str) -> TrainConfig:
    return parse(words(folder, **overrides))[0]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pretrain", "plan", *arguments])
    return front_door.main()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> plan.Plan:
    return make_plan(config(tmp_path_factory.mktemp("plan")), PlanConfig(nodes=2, gpus=2))


def test_every_setting_is_there_and_the_simplest_that_fits_is_picked(made):
    assert [(c.checkpointing, c.stage) for c in made.choices] == [(r, s) for r in (False, True) for s in range(4)]
    assert all(choice.fits for choice in made.choices)
    assert {choice.precision for choice in made.choices} == {"bf16"}
    assert (made.picked.stage, made.picked.checkpointing) == (0, False)


def test_parameters_and_units_are_exact(made, tmp_path):
    model = blank_model(config(tmp_path).task)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert made.states.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (made.units, made.unit) == (10 * 64 * LENGTH, "tokens")
    assert made.shards == 4 * made.units  # 70,000 pieces do not fit into 16 bits


def test_days_follow_from_the_stated_mfu(made):
    seconds = made.flops / (4 * 312e12 * 0.4)
    assert made.units / made.units_per_second(made.picked) == pytest.approx(seconds)
    recomputing = next(choice for choice in made.choices if choice.checkpointing)
    assert made.units_per_second(recomputing) == pytest.approx(made.units_per_second(made.picked) * 3 / 4)


def test_the_chunked_loss_is_compared_with_all_logits_at_once(made):
    for choice in made.choices:
        if choice.peak.name == "backward":
            assert choice.unchunked > choice.peak.total


def test_the_loss_is_planned_as_the_device_will_cut_it(tmp_path):
    """What a chunk of 4,096 tokens takes is too large a share of a small device; a CPU cuts as it was measured."""
    run = config(tmp_path, task__loss_chunk_elements="null", batch__size="128", batch__micro_size="128")
    large, small = make_plan(run, PlanConfig(gpu="h100-80")), make_plan(run, PlanConfig(gpu="l4-24", memory_gb=8))
    cpu = make_plan(config(tmp_path, task__loss_chunk_elements="null"), PlanConfig(gpu="cpu"))
    assert [made.loss_layout.tokens for made in (large, small, cpu)] == [4096, 1024, 2**22 // 70_000]
    assert large.loss_layout.fused and not cpu.loss_layout.fused
    row = 70_016  # the next multiple of 64
    assert {choice.activations.logits for choice in large.choices} == {4096 * row * 2}  # bf16 at every stage
    tokens = 4 * LENGTH // 3  # of three even chunks, which are rounded up
    assert cpu.choices[0].activations.logits == (tokens + 1) * 70_000 * 4  # their gradient is written over them
    assert "4,096 tokens into 4 chunk(s) of 1,024 (task.loss_chunk_elements)" in describe(small)
    given = make_plan(config(tmp_path, task__loss_chunk_elements="7001600"), PlanConfig(gpu="h100-80"))
    assert given.loss_layout.tokens == 100


def test_less_memory_picks_more_and_at_last_nothing(tmp_path):
    run = config(tmp_path, task__loss_chunk_elements="100000000", batch__size="128", batch__micro_size="64")
    least = [c.peak.total for c in make_plan(run, PlanConfig(gpus=2)).choices]
    wanted = min(least[5:])
    picked = make_plan(run, PlanConfig(gpus=2, memory_gb=wanted / 1e9, headroom=0.0)).picked
    assert picked is not None and picked.peak.total == wanted
    nothing = make_plan(run, PlanConfig(gpus=2, memory_gb=1e-4))
    assert nothing.picked is None and "nothing fits" in describe(nothing)


def test_later_rounds_cost_their_steps_and_a_forward_pass(made, tmp_path):
    twice = make_plan(config(tmp_path, rounds__count="2"), PlanConfig(nodes=2, gpus=2))
    assert twice.units == 1.5 * made.units
    assert twice.flops == pytest.approx((1.5 + 1 / 3) * made.flops)


def test_the_command_takes_a_file_and_overrides(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    file = [
        "--config",
        "configs/pangu_pi/runs/quickstart.yaml",
        "--nodes",
        "1",
        "--gpus",
        "2",
        "--gpu",
        "l4-24",
        "--mfu",
        "0.25",
    ]
    assert call(monkeypatch, *file, "--batch.size", "32") == 0
    text = capsys.readouterr().out
    assert "batch 32 = 2 ranks x 8 x 2 micro-batches" in text and "25% MFU, an assumption" in text
    assert "picked: ZeRO stage 0 in bf16, without recomputation" in text and "ZeRO 3, bf16, recomputation" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "gpus is 0; it must be at least 1"),
        (["--mfu", "40"], "mfu is 40.0; it must be greater than 0 and at most 1"),
        (["--gpus", "3"], "batch.size 16 cannot be divided"),
        (["--batch.sise", "32"], "did you mean 'batch.size'?"),
        (["--gpu", "a100"], "a100-80"),
        (["--engine.activation_checkpointing", "perhaps"], "activation_checkpointing"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert call(monkeypatch, "--config", "configs/pangu_pi/runs/quickstart.yaml", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("plan: ") and error.count("\n") == 1


def test_devices_have_the_peaks_that_runs_are_measured_with():
    for kind, (name, _) in SHEETS.items():
        device = find_device(kind, 8, None, None)  # type: ignore[arg-type]
        assert device.peak_tflops == KNOWN_BF16_TFLOPS[name] and device.memory == float(kind.rpartition("-")[2]) * 1e9


def test_ranks_share_a_cpu():
    one, four = (find_device("cpu", ranks, None, 1.0) for ranks in (1, 4))
    assert four.memory == one.memory / 4
    with pytest.raises(ConfigurationError, match="memory_gb"):
        find_device("cpu", 1, -1.0, 1.0)


def test_nothing_is_built(monkeypatch, tmp_path):
    """7 billion parameters, and neither an engine nor a model with numbers."""
    monkeypatch.setattr(Engine, "__init__", lambda *_: pytest.fail("an engine was built"))
    run = config(tmp_path, task__model=str(ROOT / "configs/pangu_pi/models/pangu_pi_7b.yaml"))
    assert plan.count_states(run).parameters > 6e9
