"""The sampler of multiple-round training, and how selective it is (docs/methods/tiny_lm.md: rounds)."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import ConfigurationError
from pretrain.rounds.selection import choose, gumbel_seed, gumbel_top_k, log_probabilities

LOSSES = st.lists(st.floats(-50, 50), min_size=1, max_size=60).map(np.array)


def inclusion(losses: list[float], count: int) -> np.ndarray:
    """Exact inclusion probabilities of sequential sampling without replacement, by enumeration."""
    weights = np.exp(losses)
    included = np.zeros(len(losses))
    for sequence in itertools.permutations(range(len(losses)), count):
        probability, left = 1.0, weights.sum()
        for place in sequence:
            probability *= weights[place] / left
            left -= weights[place]
        included[list(sequence)] += probability
    return included


def test_inclusion_frequencies_are_those_of_sequential_sampling():
    expected = inclusion([1, 2, 3, 4], 2)
    assert expected == pytest.approx([0.10304, 0.27467, 0.69570, 0.92659], abs=1e-5)
    assert expected == pytest.approx([0.103, 0.277, 0.696, 0.924], abs=3e-3)  # of sequential sampling
    draws, counts = 40_000, np.zeros(4)
    generator = np.random.default_rng(0)
    logs = log_probabilities(np.array([1.0, 2.0, 3.0, 4.0]))
    for _ in range(draws):
        counts[gumbel_top_k(logs, 2, generator)] += 1
    tolerance = 4 * np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(counts / draws - expected) < tolerance), counts / draws


@given(losses=LOSSES)
def test_probabilities_sum_to_one(losses):
    assert np.exp(log_probabilities(losses)).sum() == pytest.approx(1.0, abs=1e-12)


def test_no_loss_overflows():
    logs = log_probabilities(np.array([5000.0, 0.0, 5000.0]))
    assert np.exp(logs) == pytest.approx([0.5, 0, 0.5]) and np.all(np.isfinite(logs))


@given(losses=LOSSES, seed=st.integers(0, 2**64 - 1), parts=st.integers(1, 9), data=st.data())
def test_exactly_so_many_none_twice_and_reproducible(losses, seed, parts, data):
    count = data.draw(st.integers(1, losses.size))
    choice = choose(losses, count, seed=seed, parts=parts)
    assert choice.chosen_K.size == count == np.unique(choice.chosen_K).size
    assert np.array_equal(choice.chosen_K, np.sort(choice.chosen_K))
    assert np.array_equal(choice.chosen_K, choose(losses, count, seed=seed, parts=parts).chosen_K)
    assert choose(losses, losses.size, seed=seed, parts=parts).chosen_K.tolist() == list(range(losses.size))


@given(steps=st.lists(st.integers(-400, 400), min_size=2, max_size=60), constant=st.integers(-1000, 1000))
def test_a_constant_added_to_all_losses_changes_nothing(steps, constant):
    losses = np.array(steps) / 8  # exact in binary, so the sum is exact
    one, other = choose(losses, len(steps) // 2, seed=3), choose(losses + constant, len(steps) // 2, seed=3)
    assert np.array_equal(one.chosen_K, other.chosen_K) and one.shift == pytest.approx(other.shift, abs=1e-9)


@pytest.mark.parametrize(("spread", "shift"), [(0.02, 0.01), (0.05, 0.04), (0.2, 0.14), (1.0, 0.52)])
def test_selectivity_is_as_weak_as_the_specification_says(spread, shift):
    losses = 3 + spread * np.random.default_rng(1).standard_normal(75_000)
    assert choose(losses, 37_500, seed=2).shift == pytest.approx(shift, abs=0.01)
    assert choose(losses, 37_500, seed=2, uniform=True).shift == pytest.approx(0, abs=0.01)


def test_parts_get_equal_shares_whatever_their_losses():
    losses = np.repeat([9.0, 1.0, 1.0, 1.0], 100)
    assert (choose(losses, 200, seed=0).chosen_K < 100).sum() == 100  # globally the hard part is taken whole
    chosen = choose(losses, 200, seed=0, parts=4).chosen_K
    assert np.bincount(chosen // 100).tolist() == [50, 50, 50, 50]


def test_units_without_a_finite_loss_are_left_out_and_counted():
    losses = np.array([1.0, np.nan, 2.0, np.inf, 3.0])
    choice = choose(losses, 3, seed=1)
    assert choice.chosen_K.tolist() == [0, 2, 4] and choice.excluded == 2 and choice.mean == 2
    with pytest.raises(ConfigurationError, match=r"rounds\.keep asks for 4 of 5 units, but only 3 have a finite loss"):
        choose(losses, 4, seed=1)


def test_equal_losses_have_no_shift():
    assert choose(np.ones(10), 5, seed=0).shift == 0


def test_every_round_and_seed_draws_anew():
    losses = np.zeros(100)
    drawn = {tuple(choose(losses, 50, seed=gumbel_seed(*key)).chosen_K) for key in ((1, 2), (1, 3), (2, 2), (-1, 2))}
    assert len(drawn) == 4
