"""RoundsOrder: round 1 is an Order; later rounds serve the chosen units, each once, as arithmetic on the step."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import OrderError
from data_pipeline.order import Order
from data_pipeline.round_order import RoundsOrder, Selection, first_visits, selection_path


def test_without_later_rounds_it_is_the_order():
    one, several = Order([70, 30], 8, seed=4, weights=[1, 2]), RoundsOrder([70, 30], 8, seed=4, weights=[1, 2])
    assert one.identity() == several.identity()
    assert all(np.array_equal(one.batch(step), several.batch(step)) for step in range(40))


@given(steps=st.integers(2, 40), seed=st.integers(-5, 2**40), data=st.data())
def test_a_later_round_serves_each_chosen_batch_once_exactly_as_it_was(steps, seed, data):
    chosen = data.draw(st.sets(st.integers(0, steps - 1), min_size=1))
    order = RoundsOrder([1000], 8, seed)
    order.add(Selection(2, steps, "batch", np.array(sorted(chosen))))
    first, second = Order([1000], 8, seed), [order.batch(steps + place) for place in range(len(chosen))]
    assert all(np.array_equal(order.batch(step), first.batch(step)) for step in range(steps))
    assert sorted(batch.tolist() for batch in second) == sorted(first.batch(number).tolist() for number in chosen)
    served = [int(order.units(steps + place, "batch")[0]) for place in range(len(chosen))]
    assert sorted(served) == sorted(chosen)
    assert all(np.array_equal(first.batch(unit), batch) for unit, batch in zip(served, second, strict=True))


def test_rounds_have_different_orders_of_the_same_units():
    order, units = RoundsOrder([1000], 4, 7), np.arange(0, 64, 2)
    order.add(Selection(2, 64, "batch", units))
    order.add(Selection(3, 96, "batch", units))
    rounds = [[int(order.units(first + place, "batch")[0]) for place in range(32)] for first in (64, 96)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == units.tolist()
    assert rounds[0] != rounds[1] and rounds[0] != units.tolist()


def test_chosen_samples_are_grouped_anew_each_once():
    order, units = RoundsOrder([100], 10, 7), np.arange(0, 100, 2)
    order.add(Selection(2, 10, "sample", units))
    stream = np.concatenate([order.batch(10 + place) for place in range(5)])
    assert np.array_equal(np.sort(stream), units)
    assert order.batch(10).shape == (10,) and np.array_equal(order.batch(10), order.units(10, "sample"))


def test_any_step_costs_the_same_and_needs_no_other():
    order = RoundsOrder([3_000_000_000], 512, 0)
    order.add(Selection(2, 75_000, "batch", np.arange(0, 75_000, 2)))
    far = order.batch(75_000 + 37_499)
    assert np.array_equal(far, Order([3_000_000_000], 512, 0).batch(int(order.units(112_499, "batch")[0])))


@given(samples=st.integers(5, 60), batch_size=st.integers(1, 16), steps=st.integers(1, 12))
def test_first_visits_name_every_sample_once_and_count_its_visits(samples, batch_size, steps):
    order = RoundsOrder([samples], batch_size, 3)
    stream = np.concatenate([order.batch(step) for step in range(steps)]).tolist()
    found, visits = first_visits(order, steps)
    assert found.tolist() == list(dict.fromkeys(stream))
    assert visits.tolist() == [stream.count(sample) for sample in found.tolist()]


def test_a_selection_survives_its_file_and_is_named_by_content(tmp_path):
    selection = Selection(2, 42, "sample", np.array([3, 5, 8]), {"asked": {"rounds.keep": 0.5}})
    path = selection_path(tmp_path, 2)
    path.parent.mkdir()
    path.write_bytes(selection.to_bytes())
    loaded = Selection.load(path)
    assert loaded.settings == selection.settings and loaded.identity() == selection.identity()
    assert loaded.to_bytes() == selection.to_bytes()
    assert Selection(2, 42, "sample", np.array([3, 5, 9])).identity() != selection.identity()


@pytest.mark.parametrize("content", [None, b"junk", b""])
def test_an_unreadable_selection_is_named(tmp_path: Path, content):
    path = tmp_path / "round_2.selection.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OrderError, match=r"round_2\.selection\.safetensors: not a round's selection of units"):
        Selection.load(path)


@pytest.mark.parametrize(
    "selection",
    [
        Selection(3, 9, "batch", np.arange(3)),
        Selection(2, 0, "batch", np.arange(3)),
        Selection(2, 9, "batch", np.array([])),
    ],
)
def test_rounds_out_of_turn_are_refused(selection):
    with pytest.raises(OrderError, match="cannot follow round 1"):
        RoundsOrder([10], 2, 0).add(selection)
