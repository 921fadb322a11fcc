"""What makes a unit important, against naive loops."""

from itertools import pairwise

import pytest
import torch

from arch.surgery.criteria import choose_units, position_scores, taylor_scores, weight_scores
from arch.surgery.groups import unit_sets
from arch.surgery.layers import evenly

from .conftest import SHAPE
from .surgery_cases import DONORS, fingerprint


@pytest.fixture(params=DONORS)
def donor(request, build):
    return build(shake=True, **DONORS[request.param]).eval()


@pytest.fixture
def rows_NS():
    return torch.randint(SHAPE["vocab_size"], (6, 12), generator=torch.Generator().manual_seed(1))


def owned(model, units, unit, values):
    """The entries of `values` (by parameter name) that a unit owns, by member, flat."""
    for member in units.members:
        where = torch.arange(unit * member.block, (unit + 1) * member.block)
        yield member, values[member.name].index_select(member.dim, where).flatten()


@pytest.mark.parametrize("order", [1, 2])
def test_weight_scores_are_norms_over_all_that_a_unit_owns(donor, order):
    weights = {name: parameter.detach() for name, parameter in donor.named_parameters()}
    scores = weight_scores(donor, order)
    assert set(scores) == set(unit_sets(donor))
    for kind in set(scores) - {"hidden"}:
        for row, units in zip(scores[kind], unit_sets(donor)[kind], strict=True):
            for unit in (0, units.units - 1):
                everything = torch.cat([entries for _, entries in owned(donor, units, unit, weights)])
                assert float(row[unit]) == pytest.approx(float(everything.norm(p=order)), rel=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_hidden_scores_weigh_every_matrix_type_alike(donor, order):
    (units,) = unit_sets(donor)["hidden"]
    weights = {name: parameter.detach() for name, parameter in donor.named_parameters()}
    types: dict[str, torch.Tensor] = {}
    for channel in range(units.units):
        for member, entries in owned(donor, units, channel, weights):
            row = types.setdefault(member.matrix_type, torch.zeros(units.units))
            row[channel] += entries.norm(p=order)
    expected = sum(row / row.mean() for row in types.values())
    torch.testing.assert_close(weight_scores(donor, order)["hidden"][0], expected, rtol=1e-4, atol=0)
    with torch.no_grad():
        for layer in donor.model.layers:
            layer.self_attn.q_proj.weight *= 1000
    torch.testing.assert_close(weight_scores(donor, order)["hidden"][0], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", ["group", "element"])
def test_taylor_is_weight_times_gradient_averaged_over_batches(donor, rows_NS, form):
    before = fingerprint(donor)
    scores = taylor_scores(donor, rows_NS, form, batch=4, progress=False)
    assert fingerprint(donor) == before and all(parameter.grad is None for parameter in donor.parameters())
    products = []
    for rows in rows_NS.split(4):
        donor(input_ids=rows, labels=rows).loss.backward()
        products.append({name: p.detach() * p.grad for name, p in donor.named_parameters()})
        donor.zero_grad()
    for kind in set(scores) - {"hidden"}:
        for row, units in zip(scores[kind], unit_sets(donor)[kind], strict=True):
            for unit in (0, units.units - 1):
                per_batch = []
                for product in products:
                    entries = torch.cat([entries for _, entries in owned(donor, units, unit, product)])
                    per_batch.append(entries.sum().abs() if form == "group" else entries.abs().sum())
                expected = float(torch.stack(per_batch).mean())
                assert float(row[unit]) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_taylor_predicts_what_a_little_less_of_a_unit_costs(build, rows_NS):
    """The score is the slope of the loss along the unit: against a difference quotient."""
    donor = build(shake=True).eval()
    score = taylor_scores(donor, rows_NS, "group", batch=6, progress=False)["ffn"][1]
    unit = int(score.argmax())
    losses = []
    for factor in (0.98, 1.02):
        with torch.no_grad():
            for member in unit_sets(donor)["ffn"][1].members:
                donor.get_parameter(member.name).select(member.dim, unit).mul_(factor)
            losses.append(float(donor(input_ids=rows_NS, labels=rows_NS).loss))
            for member in unit_sets(donor)["ffn"][1].members:
                donor.get_parameter(member.name).select(member.dim, unit).div_(factor)
    assert float(score[unit]) == pytest.approx(abs(losses[1] - losses[0]) / 0.04, rel=0.1)


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor"])
def test_units_that_are_zero_go(donor, rows_NS, criterion):
    dead = {"ffn": 5, "shortcut": 3, "hidden": 40, "heads": 1}
    sets = unit_sets(donor)
    with torch.no_grad():
        for kind, units in sets.items():
            for one in units:
                for member in one.members:
                    entries = member.entries(torch.tensor([dead[kind]]))
                    donor.get_parameter(member.name).index_fill_(member.dim, entries, 0.0)
    scores = taylor_scores(donor, rows_NS, progress=False) if criterion == "taylor" else weight_scores(
        donor, 1 if criterion == "l1" else 2)  # fmt: skip
    chosen = choose_units(scores, {kind: units[0].units - 1 for kind, units in sets.items()})
    for kind, kept in chosen.items():
        for indices in kept:
            assert len(indices) == sets[kind][0].units - 1 and dead[kind] not in indices.tolist()
            assert indices.tolist() == sorted(indices.tolist())


def test_choices_by_position_and_by_lot(donor):
    sets = unit_sets(donor)
    sizes = {kind: max(1, units[0].units // 3) for kind, units in sets.items()}
    for kind, kept in choose_units(position_scores(donor, "first", sizes), sizes).items():
        assert all(indices.tolist() == list(range(sizes[kind])) for indices in kept)
    for kind, kept in choose_units(position_scores(donor, "uniform", sizes), sizes).items():
        assert all(indices.tolist() == evenly(sets[kind][0].units, sizes[kind]) for indices in kept)
    draws = [choose_units(position_scores(donor, "random", sizes, seed), sizes) for seed in (0, 0, 1)]
    assert torch.equal(draws[0]["ffn"][0], draws[1]["ffn"][0])
    assert not torch.equal(draws[0]["ffn"][0], draws[2]["ffn"][0])
    assert not torch.equal(draws[0]["ffn"][0], draws[0]["ffn"][1]), "every layer draws for itself"


@pytest.mark.parametrize(("available", "count"), [(30, 8), (8, 8), (7, 3), (5, 1)])
def test_even_spacing_is_even_and_exact(available, count):
    chosen = evenly(available, count)
    gaps = {b - a for a, b in pairwise(chosen)}
    assert len(set(chosen)) == count and chosen[0] >= 0 and chosen[-1] < available
    assert not gaps or max(gaps) - min(gaps) <= 1
