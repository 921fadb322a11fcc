"""A loss that leaves its course: noted once, rolled back where asked for, and judged alike by a continued run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.order import Order
from pretrain.config import GuardConfig
from pretrain.guards import FEWEST, WINDOW, DivergenceGuard
from pretrain.trainer import Outcome
from tests.pretrain.conftest import rows
from tests.pretrain.test_guards import BATCH, SEED, SignalAtStep, final_weights, run, toy

SIZE = 512


def settled(**options: object) -> DivergenceGuard:
    """A guard that has seen losses around 2."""
    guard = DivergenceGuard(GuardConfig(**options))  # type: ignore[arg-type]
    guard.begin(2 + 0.1 * np.random.default_rng(0).standard_normal(WINDOW))
    return guard


def test_ordinary_noise_and_a_falling_loss_are_no_spikes():
    noise = np.random.default_rng(1).standard_normal(3000)
    falling = 1.5 + 8.5 * np.exp(-np.arange(3000) / 100) + 0.15 * noise
    guard = DivergenceGuard(GuardConfig())
    assert not [step for step, loss in enumerate(falling) if guard.look(step, True, loss).event]


def test_a_spike_is_noted_with_its_batch_once_and_a_new_level_becomes_the_course():
    guard = settled()
    verdicts = [guard.look(step, True, loss) for step, loss in enumerate([2.0, 9.0, 2.0, *[9.0] * 30])]
    noted = {step: verdict.event[1] for step, verdict in enumerate(verdicts) if verdict.event}
    assert list(noted) == [1, 3, 5]
    assert noted[1] == "loss 9 in batch 1, usual until now: 2.005"
    assert "has risen from 2.005 to 9 and stays there" in noted[5]
    assert not any(verdict.roll_back for verdict in verdicts)


def test_rolls_back_after_spikes_in_a_row_only_and_gives_up_in_the_end():
    guard = settled(spike_rollback=True, spike_steps=3, max_rollbacks=1)
    losses = [9.0, 9.0, 2.0, 9.0, math.nan, 9.0, 9.0]
    assert [guard.look(0, True, loss).roll_back for loss in losses] == [False] * 6 + [True]
    assert guard.watching
    guard.begin([2.0] * FEWEST)
    assert not guard.watching and not guard.look(0, True, 9.0).roll_back and not guard.look(0, True, 9.0).roll_back
    given_up = guard.look(0, True, 9.0).give_up
    assert given_up.startswith("a loss far above its course in 3 steps in a row, also after 1 rollbacks")


def test_nothing_is_looked_for_where_it_is_switched_off_or_too_few_losses_are_known():
    assert settled(spike_sigmas=None).look(0, True, 1e9).event is None
    guard = DivergenceGuard(GuardConfig())
    guard.begin([2.0] * (FEWEST - 1))
    assert guard.look(0, True, 1e9).event is None


def spiking(output: Path, *extra: str, steps: int = 40) -> list[str]:
    """A toy run whose batches 30, 31 and 32 have a hundred times their loss."""
    order = Order([SIZE], BATCH, SEED)
    poison = [int(order.batch(step)[0]) for step in (30, 31, 32)]
    words = toy(
        output, "--guards.spike_rollback", "true", "--checkpoint.every", "4", *extra, poison=poison, steps=steps
    )
    return [*words, "--task.size", str(SIZE), "--task.factor", "300"]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_run_goes_back_and_steps_over_the_batches_that_spiked(tmp_path, stage):
    assert run(spiking(tmp_path, "--engine.zero_stage", str(stage))) is Outcome.FINISHED
    events = [(row["event"], row["step"]) for row in rows(tmp_path, "event")]
    # No checkpoint at step 32, in the midst of the spikes: back to step 28.
    assert events == [("spike", 31), ("spike", 32), ("spike", 33), ("rollback", 33), ("resume", 28)]
    meta = json.loads((tmp_path / "checkpoints" / "step_00000040" / "meta.json").read_text())
    assert (meta["step"], meta["data_step"]) == (40, 45)
    losses = [row["loss"] for row in rows(tmp_path, "train")]
    assert len(losses) == 40 and max(losses[20:]) < 2


def test_a_checkpoint_that_fell_due_among_spikes_is_made_after_them(tmp_path):
    words = spiking(tmp_path, "--guards.spike_steps", "4", "--checkpoint.keep", "100")
    assert run(words) is Outcome.FINISHED
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*"))
    assert steps == [4, 8, 12, 16, 20, 24, 28, 34, 36, 40]


@pytest.mark.parametrize("stopped", [28, 32])
def test_a_continued_run_knows_the_course_and_ends_with_the_same_weights(tmp_path, stopped):
    """Stopped before the spikes, and in their midst, where nothing is saved."""
    hook = json.dumps(
        [{"class_path": f"{SignalAtStep.__module__}.SignalAtStep", "init_args": {"step": stopped, "name": "SIGTERM"}}]
    )
    assert run(spiking(tmp_path / "cut", "--hooks", hook)) is Outcome.STOPPED
    assert run(spiking(tmp_path / "cut")) is Outcome.FINISHED
    run(spiking(tmp_path / "whole"))
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    events = [(row["event"], row["step"]) for row in rows(tmp_path / "cut", "event")]
    assert events[-2:] == [("rollback", 33), ("resume", 28)]
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
