"""ZeRO's states against the formulas of its paper, and against what each stage promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pretrain.planning.activation_memory import ActivationMemory
from pretrain.planning.zero_memory import Moment, Setting, States, host_bytes, peak_moment

COUNT = 7_500_000_000  # the model of ZeRO's figure 1, on 64 ranks
STATES = States(parameters=COUNT, frozen=0, largest_group=COUNT, small=0)
NOTHING = ActivationMemory(0, 0, 0, 0, 0)
BUCKET = {"reduce_bucket_size": 500_000_000}
GB = 1e9


def at(stage: int, ranks: int = 64, **changes: object) -> Setting:
    setting = Setting(stage, ranks, weight_bytes=2, gradient_bytes=2, accumulation=8, zero=BUCKET)
    return replace(setting, **changes)  # type: ignore[arg-type]


FP32 = {"weight_bytes": 4, "gradient_bytes": 4}
SUMMED_IN_FP32 = {"gradient_bytes": 4}


def peak(setting: Setting, activations: ActivationMemory = NOTHING) -> Moment:
    return peak_moment(setting, STATES, activations)


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_paper(stage, gigabytes):
    """Figure 1: weights, gradients and optimizer states; the paper has no buckets, copies and gathered weights."""
    whole = at(stage, zero=BUCKET | {"stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0})
    moment = peak(whole, ActivationMemory(0, 2e9, 2e9, 0, 0))
    found = moment.weights + moment.gradients + moment.optimizer
    extra = 2 * COUNT / 64 if stage == 2 else 0  # the partition of earlier micro-batches besides the new one
    assert moment.name == "backward" and found - extra == pytest.approx(gigabytes * GB, rel=0.02)  # the paper rounds


def test_stages_need_less_and_less_on_many_ranks_and_fp32_more():
    totals = [peak(at(stage)).total for stage in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True) and totals[2] < 0.5 * totals[0]
    for stage in (1, 2, 3):
        assert peak(at(stage, ranks=128)).total < peak(at(stage)).total < peak(at(stage, **FP32)).total


def test_without_zero_the_ranks_do_not_help():
    one, many = (peak(at(0, ranks=ranks, **FP32)) for ranks in (1, 64))
    assert one == many
    assert one.weights + one.gradients + one.optimizer == 16 * COUNT


def test_accumulated_gradients_are_there_before_the_last_backward():
    activations = ActivationMemory(kept=8e9, peak=9e9, peak_with_gradients=10e9, gradients_at_peak=2e9, logits=0)
    alone, several = (peak(at(1, accumulation=count), activations) for count in (1, 8))
    assert several.gradients == 2 * COUNT and several.activations == 9e9
    assert alone.total < several.total


def test_offloading_moves_the_optimizer_to_the_host():
    setting = at(2, offload_optimizer=True)
    assert host_bytes(at(2), STATES) == 0 and peak(setting).optimizer == 0
    assert host_bytes(setting, STATES) == pytest.approx((4 + 8 + 4 + 2) * COUNT / 64)
    both = at(3, offload_optimizer=True, offload_parameters=True)
    assert host_bytes(both, STATES) > host_bytes(at(3, offload_optimizer=True), STATES)
    assert peak(both).weights < peak(at(3)).weights


def test_stage_3_gathers_what_is_used_again_soon_and_nothing_on_one_rank():
    far, near = (peak(at(3, zero=BUCKET | {"stage3_max_reuse_distance": distance})) for distance in (10**9, 10**7))
    assert far.total - near.total == pytest.approx(2 * (10**9 - 10**7) / 2)
    assert peak(at(3, ranks=1)).weights == 2 * COUNT


def test_stage_3_has_a_master_copy_in_fp32_too_and_reduces_a_copy_of_its_bucket():
    small = at(3, ranks=1, **FP32, zero={"reduce_bucket_size": COUNT})
    device, host = peak(small), peak(replace(small, counts_when_written=True))
    assert device.optimizer == host.optimizer == 12 * COUNT
    assert (device.name, device.buffers) == ("reduce", 2 * 4 * COUNT)
    assert (host.name, host.buffers) == ("reduce", 3 * 4 * COUNT)


@pytest.mark.parametrize(("stage", "more"), [(1, 2 * COUNT), (2, 2 * COUNT / 64), (3, 2 * COUNT / 64)])
def test_sums_in_fp32_take_two_bytes_more_of_each_gradient_that_is_kept(stage, more):
    """Whole ones at stage 1, the rank's own elsewhere; without accumulation, where bf16 keeps no second partition."""
    setting = at(stage, accumulation=1)
    activations = ActivationMemory(
        kept=8e11, peak=9e11, peak_with_gradients=9e11 + 2 * COUNT, gradients_at_peak=2 * COUNT, logits=0
    )
    low, high = peak(setting, activations), peak(replace(setting, **SUMMED_IN_FP32), activations)
    assert (low.name, high.name) == ("backward", "backward")
    assert high.gradients - low.gradients == pytest.approx(more)
    assert high.optimizer == low.optimizer and high.weights == low.weights


def test_without_zero_bf16_has_masters_and_sums_in_fp32():
    """2 + 4 + 4 + 8 bytes a parameter, and flat copies while reducing; fp32 has 4 + 4 + 8."""
    moment = peak(at(0, **SUMMED_IN_FP32))
    assert moment.weights + moment.gradients + moment.optimizer == 18 * COUNT
    small = replace(STATES, parameters=10**8, largest_group=10**8)
    reducing = peak_moment(at(0, **SUMMED_IN_FP32), small, NOTHING)
    assert (reducing.name, reducing.buffers) == ("reduce", 4 * 10**8)
