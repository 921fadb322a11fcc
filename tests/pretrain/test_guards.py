"""Non-finite gradients: skipped, counted, rolled back, given up on; stop signals: saved, exit without an error."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.order import Order
from pretrain.command_line import parse
from pretrain.config import GuardConfig
from pretrain.errors import TrainingDiverged
from pretrain.guards import DivergenceGuard
from pretrain.hooks import EvaluationHook
from pretrain.trainer import Outcome, train
from tests.pretrain.conftest import rows

SIZE, BATCH, SEED = 64, 8, 3
QUIET = ["--telemetry.progress_bar", "false", "--telemetry.tensorboard", "false", "--telemetry.every", "1"]


def toy(output: Path, *extra: str, poison: list[int] | None = None, steps: int = 7) -> list[str]:
    return [
        *("--task", "tests.pretrain.toy.ToyTask", "--task.size", str(SIZE), "--task.poison", json.dumps(poison or [])),
        *("--output", str(output), "--steps", str(steps), "--seed", str(SEED), "--optimizer.lr", "0.01"),
        *("--batch.size", str(BATCH), "--batch.micro_size", "4", "--checkpoint.every", "2", *QUIET, *extra),
    ]


def sample_of_step(step: int) -> int:
    return int(Order([SIZE], BATCH, SEED).batch(step)[0])


def run(arguments: list[str]) -> Outcome:
    return train(parse(arguments)[0])


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / (output / "checkpoints" / "latest").read_text() / "model.safetensors")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_poisoned_batch_is_skipped_and_counted(tmp_path, stage):
    arguments = toy(tmp_path, "--engine.zero_stage", str(stage), poison=[sample_of_step(3)])
    assert run(arguments) is Outcome.FINISHED
    (event,) = rows(tmp_path, "event")
    assert (event["event"], event["step"]) == ("skip", 4) and "batch 3" in event["detail"]
    meta = json.loads((tmp_path / "checkpoints" / "step_00000007" / "meta.json").read_text())
    assert meta["skipped"] == 1 and meta["data_step"] == 7
    assert all(tensor.isfinite().all() for tensor in final_weights(tmp_path).values())
    losses = {row["step"]: row["loss"] for row in rows(tmp_path, "train")}
    assert losses[4] == "nan" and all(isinstance(loss, float) for step, loss in losses.items() if step != 4)


def test_a_skipped_step_changes_no_weight(tmp_path):
    constant = ["--schedule.name", "constant", "--schedule.warmup_steps", "0"]
    run(toy(tmp_path / "three", *constant, steps=3))
    run(toy(tmp_path / "four", *constant, poison=[sample_of_step(3)], steps=4))
    three, four = final_weights(tmp_path / "three"), final_weights(tmp_path / "four")
    assert all(torch.equal(three[name], four[name]) for name in three)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_rolls_back_and_steps_over_the_bad_batches(tmp_path, stage):
    poison = [sample_of_step(3), sample_of_step(4)]
    extra = ["--guards.max_consecutive_skips", "2", "--engine.zero_stage", str(stage)]
    assert run(toy(tmp_path, *extra, poison=poison)) is Outcome.FINISHED
    events = [(row["event"], row["step"]) for row in rows(tmp_path, "event")]
    # Step 4 is skipped and saved; the second skip in a row rolls back to it.
    assert events == [("skip", 4), ("skip", 5), ("rollback", 5), ("resume", 4)]
    meta = json.loads((tmp_path / "checkpoints" / "step_00000007" / "meta.json").read_text())
    assert meta["step"] == 7 and meta["data_step"] == 8  # one more batch than steps: the one stepped over
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 8))


def test_gives_up_before_the_first_checkpoint_with_advice(tmp_path):
    poison = [sample_of_step(0)]
    with pytest.raises(TrainingDiverged, match=r"before the first checkpoint; lower optimizer\.lr"):
        run(toy(tmp_path, "--guards.max_consecutive_skips", "1", poison=poison))


def test_gives_up_after_the_last_rollback():
    guard = DivergenceGuard(GuardConfig(max_consecutive_skips=2, max_rollbacks=1))
    steps = (False, True, False, False)
    assert [guard.look(0, applied, 1.0).roll_back for applied in steps] == [False, False, False, True]
    guard.begin([])
    assert not guard.look(0, False, 1.0).roll_back
    verdict = guard.look(0, False, 1.0)
    assert "after 1 rollbacks" in verdict.give_up and not verdict.roll_back


def test_the_step_that_ends_a_run_is_still_noted(tmp_path):
    extra = ["--guards.max_consecutive_skips", "1", "--guards.max_rollbacks", "0"]
    with pytest.raises(
        TrainingDiverged, match=r"non-finite gradients in 1 steps in a row.*raise guards\.max_rollbacks"
    ):
        run(toy(tmp_path, *extra, poison=[sample_of_step(3)]))
    assert [(row["event"], row["step"]) for row in rows(tmp_path, "event")] == [("skip", 4)]


class SignalAtStep(EvaluationHook):
    """Sends this process a signal, as a cluster does before it takes the machine away."""

    every = 1

    def __init__(self, step: int, name: str = "SIGTERM") -> None:
        self.step, self.name = step, name

    def __call__(self, *, step: int, **_: Any) -> dict[str, dict[str, float]]:
        if step == self.step:
            signal.raise_signal(signal.Signals[self.name])  # to this thread, which hears it at once
        return {"signal": {"step": float(step)}}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_leaves_and_the_run_continues_to_the_same_end(tmp_path, name):
    hook = json.dumps(
        [{"class_path": "tests.pretrain.test_guards.SignalAtStep", "init_args": {"step": 3, "name": name}}]
    )
    stopped = toy(tmp_path / "stopped")
    assert run([*stopped, "--hooks", hook]) is Outcome.STOPPED
    assert (tmp_path / "stopped" / "checkpoints" / "latest").read_text() == "step_00000003"
    assert rows(tmp_path / "stopped", "event")[-1]["event"] == "signal"
    assert run(stopped) is Outcome.FINISHED
    run(toy(tmp_path / "whole"))
    whole, continued = final_weights(tmp_path / "whole"), final_weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
