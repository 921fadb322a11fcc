"""Order: each sample once per epoch, the same batches however they are cut, O(1) at any step, weights honoured."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from data_pipeline.errors import OrderError
from data_pipeline.order import PERIOD, Order, apportion
from data_pipeline.permutation import SORTED_SIZES, derive_key, permute

KEYS = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 5000), key=KEYS)
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(size=st.integers(1, 2**48), key=KEYS, data=st.data())
def test_permute_is_a_function_of_each_index_alone(size: int, key: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)))
    # Sizes up to the sorted limit build a small table, larger ones must not: 2^48 elements would not fit anywhere.
    together = permute(index, size, key)
    assert together.min() >= 0 and together.max() < size
    assert [int(permute(index[n : n + 1], size, key)[0]) for n in range(len(index))] == together.tolist()


def test_permute_refuses_indices_outside() -> None:
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        permute(np.array([3, 10]), 10, 1)


@pytest.mark.parametrize("size", [12, SORTED_SIZES, SORTED_SIZES + 1, 5000, 2**20])
def test_permute_is_uniform(size: int) -> None:
    """Chi-square over many keys: where one index goes, and where a pair of neighbours goes, in a grid of cells."""
    cells, keys = 6, 3000
    counts = np.zeros((cells, cells))
    place = size // 3
    for key in range(keys):
        first, second = permute(np.array([place, place + 1]), size, derive_key(7, key)) * cells // size
        counts[first, second] += 1
    # Exact cell probabilities of two distinct images; cell sizes differ by one when 6 does not divide the size.
    width = np.bincount(np.arange(size) * cells // size, minlength=cells).astype(float)
    expected = keys * (np.outer(width, width) - np.diag(width)) / (size * (size - 1))
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, cells * cells - 1) > 1e-4


def test_neighbours_do_not_stay_neighbours() -> None:
    """Within one key: the distance of the images of i and i + 1 looks like that of two random numbers."""
    size = 100_000
    image = permute(np.arange(size), size, derive_key(3))
    distance = np.diff(image) % size
    counts = np.histogram(distance, bins=50, range=(0, size))[0]
    expected = len(distance) / 50
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), 49) > 1e-4


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
)
def test_every_sample_once_per_epoch(sizes: list[int], batch_size: int, seed: int, epoch: int) -> None:
    order = Order(sizes, batch_size, seed)
    total = sum(sizes)
    first, last = epoch * total, (epoch + 1) * total
    steps = range(first // batch_size, -(-last // batch_size))
    stream = np.concatenate([order.batch(step) for step in steps])
    offset = first - steps.start * batch_size
    assert np.array_equal(np.sort(stream[offset : offset + total]), np.arange(total))
    assert order.steps_per_epoch == -(-total // batch_size)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 500), min_size=2, max_size=4),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_weighted_stream_visits_each_source_epoch_by_epoch(sizes: list[int], seed: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.05, 1), min_size=len(sizes), max_size=len(sizes)))
    order = Order(sizes, PERIOD, seed, weights)
    slots = apportion(weights, len(sizes))
    counts = np.bincount(np.concatenate([order.batch(0), order.batch(1)]), minlength=sum(sizes))
    first = 0
    for size, slot in zip(sizes, slots, strict=True):
        own = counts[first : first + size]
        assert own.sum() == 2 * slot
        assert own.max() - own.min() <= 1  # whole epochs, plus a part of one
        first += size


@given(weights=st.lists(st.floats(0.1, 100), min_size=1, max_size=6))
def test_apportionment_is_close_to_the_weights(weights: list[float]) -> None:
    slots = apportion(weights, len(weights))
    assert slots.sum() == PERIOD
    assert np.all(np.abs(slots / PERIOD - np.array(weights) / sum(weights)) < 1 / PERIOD)


def test_short_runs_honour_the_weights_too() -> None:
    order = Order([10_000, 10_000], 64, seed=1, weights=[3, 1])
    stream = np.concatenate([order.batch(step) for step in range(16)])
    assert abs((stream < 10_000).mean() - 0.75) < 0.05


def test_seed_round_and_epoch_each_change_the_order() -> None:
    base = Order([1000], 1000, seed=1)
    for other in (Order([1000], 1000, seed=2).batch(0), Order([1000], 1000, 1, round=1).batch(0), base.batch(1)):
        assert (other == base.batch(0)).sum() < 10
    assert np.array_equal(base.batch(0), Order([1000], 1000, seed=1).batch(0))


@given(batch_size=st.integers(1, 96), split=st.integers(1, 32), weighted=st.booleans())
def test_the_stream_does_not_depend_on_the_batch_size(batch_size: int, split: int, weighted: bool) -> None:
    weights = [0.3, 0.7] if weighted else None
    length = batch_size * split
    one = np.concatenate([Order([70, 130], batch_size, 5, weights).batch(step) for step in range(split)])
    assert np.array_equal(one, Order([70, 130], length, 5, weights).batch(0))


@pytest.mark.parametrize("weights", [None, [0.2, 0.8]])
def test_step_one_million_costs_what_step_zero_costs(weights: list[float] | None) -> None:
    order = Order([3_000_000_000, 50_000_000], 512, seed=0, weights=weights)
    order.batch(0)
    started = time.process_time()
    batch = order.batch(1_000_000)
    assert time.process_time() - started < 0.2
    assert batch.shape == (512,) and batch.dtype == np.int64 and len(set(batch.tolist())) == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 4, 0), "at least one sample"),
        (([5, 0], 4, 0), "at least one sample"),
        (([5], 0, 0), "batch_size: expected at least 1"),
        (([5, 5], 4, 0, [1.0]), "expected one per source"),
        (([5, 5], 4, 0, [1.0, -1.0]), "positive"),
        (([5, 5], 4, 0, [1.0, float("nan")]), "positive"),
        (([5, 5], 4, 0, [1.0, 1e-9]), "source 1 less than"),
    ],
)
def test_impossible_orders_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(OrderError, match=message):
        Order(*arguments)


def test_negative_steps_are_refused() -> None:
    with pytest.raises(OrderError, match="step: expected 0 or more"):
        Order([5], 2, 0).batch(-1)


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    stretches=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=1, max_size=4),
    weighted=st.booleans(),
)
def test_other_batch_sizes_cut_the_same_stream(
    sizes: list[int], stretches: list[tuple[int, int]], weighted: bool
) -> None:
    weights = [1.0] * len(sizes) if weighted else None
    order = Order(sizes, 7, 3, weights)
    step = 0
    for steps, size in stretches:
        step += steps
        order.resize(step, size)
    batches = [order.batch(number) for number in range(step + 3)]
    expected = np.concatenate([Order(sizes, 1, 3, weights).batch(n) for n in range(order.position(step + 3))])
    assert np.array_equal(np.concatenate(batches), expected)
    assert len(batches[-1]) == order.batch_size == stretches[-1][1]
    again = Order(sizes, 7, 3, weights)
    again.restart(order.identity()["batch_size"], order.identity().get("batch_changes", []))
    assert again.identity() == order.identity() and np.array_equal(again.batch(step), order.batch(step))


def test_planned_sizes_are_replaced_from_a_step_on() -> None:
    order = Order([100], 4, 1)
    order.restart(4, [(3, 8), (6, 2)])
    assert order.batch_sizes_from(0) == [(0, 4), (3, 8), (6, 2)]
    assert order.batch_sizes_from(3) == [(3, 8), (6, 2)]
    assert order.batch_sizes_from(4) == [(4, 8), (6, 2)] and order.batch_sizes_from(9) == [(9, 2)]
    order.resize_from(4, [(4, 5), (5, 6)])
    batches = [order.batch(step) for step in range(7)]
    assert (
        [len(batch) for batch in batches] == [order.batch_size_at(step) for step in range(7)] == [4, 4, 4, 8, 5, 6, 6]
    )
    assert np.array_equal(np.concatenate(batches), [Order([100], 1, 1).batch(step)[0] for step in range(37)])


def test_a_batch_that_was_resized_already_is_not_resized_again() -> None:
    order = Order([10], 4, 1)
    order.resize(5, 2)
    for step, size in ((4, 3), (6, 0)):
        with pytest.raises(OrderError, match="cannot be given"):
            order.resize(step, size)
