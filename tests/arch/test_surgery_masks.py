"""Learned masks (docs/methods/tiny_lm.md: learned masks)."""

import pytest
import torch

from arch.surgery.criteria import choose_units
from arch.surgery.groups import unit_sets
from arch.surgery.mask_training import train_masks
from arch.surgery.masks import GumbelSte, HardConcrete, gated
from arch.surgery.options import MaskOptions

from .conftest import SHAPE
from .surgery_cases import DONORS, fingerprint


@pytest.fixture
def rows_NS():
    return torch.randint(SHAPE["vocab_size"], (16, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", DONORS)
@pytest.mark.parametrize("family", [HardConcrete(), GumbelSte()])
def test_gates_that_are_surely_open_are_the_donor_to_the_bit(build, ids_BS, name, family):
    donor = build(shake=True, **DONORS[name]).eval()
    before, gates = fingerprint(donor), {}
    for kind, sets in unit_sets(donor).items():
        numbers = torch.full((len(sets), sets[0].units), 40.0)
        assert (family.keep_probability(numbers) == 1).all()
        noise = torch.rand(numbers.shape, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
        gates[kind] = family.sample(numbers, noise, 0.5)
    with torch.no_grad():
        expected = donor(input_ids=ids_BS).logits
        with gated(donor, gates):
            assert torch.equal(donor(input_ids=ids_BS).logits, expected)
            gates["hidden"] = gates["hidden"] * 0.5  # the gates are looked up when the model computes
            assert not torch.equal(donor(input_ids=ids_BS).logits, expected)
        assert torch.equal(donor(input_ids=ids_BS).logits, expected), "the gates are gone afterwards"
    assert fingerprint(donor) == before


def test_hard_concrete_is_the_distribution_of_the_spec():
    family = HardConcrete()
    start = torch.tensor(family.start)
    assert float(family.keep_probability(start)) == pytest.approx(0.95)
    noise = torch.rand(200_000, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    for number in (-3.0, 0.0, 1.3):
        gates = family.sample(torch.tensor(number), noise, 0.0)
        assert gates.min() >= 0 and gates.max() <= 1
        share = float((gates != 0).float().mean())
        assert share == pytest.approx(float(family.keep_probability(torch.tensor(number))), abs=0.005)
    s = torch.sigmoid((torch.log(noise) - torch.log(1 - noise) + 1.3) / (2 / 3))
    torch.testing.assert_close(gates, (s * 1.2 - 0.1).clamp(0, 1), rtol=0, atol=1e-3)


def test_gumbel_gates_are_binary_with_a_gradient():
    family, number = GumbelSte(), torch.tensor(0.5, requires_grad=True)
    noise = torch.rand(50_000, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    for progress in (0.0, 1.0):
        gates = family.sample(number, noise, progress)
        assert ((gates.detach() - gates.detach().round()).abs() < 1e-6).all()
        assert float(gates.detach().mean()) == pytest.approx(float(torch.sigmoid(number.detach())), abs=0.01)
        (gradient,) = torch.autograd.grad(gates.mean(), number)
        assert gradient > 0


@pytest.mark.parametrize(("name", "constraint"), [("pangu", "layer"), ("llama-biases", "kind")])
def test_training_reaches_the_targets_and_leaves_the_donor_alone(build, rows_NS, name, constraint):
    donor = build(shake=True, **DONORS[name]).eval()
    donor.model.norm.weight.requires_grad_(False)
    before, sets = fingerprint(donor), unit_sets(donor)
    sizes = {"heads": 1, "ffn": 40, "shortcut": 4, "hidden": 24}
    trained = train_masks(donor, rows_NS, sizes, MaskOptions(constraint=constraint, steps=600, batch=2), progress=False)
    assert set(trained.reached) == set(sets)
    for kind, reached in trained.reached.items():
        assert trained.targets[kind] == sizes[kind] / sets[kind][0].units
        assert abs(reached - trained.targets[kind]) < 0.01, kind
    assert trained.largest_miss < 0.01 and len(trained.losses) == 600
    assert fingerprint(donor) == before and all(parameter.grad is None for parameter in donor.parameters())
    for kind, kept in choose_units(trained.scores, sizes).items():
        assert [len(set(indices.tolist())) for indices in kept] == [sizes[kind]] * len(sets[kind])


def test_the_same_seed_gives_the_same_gates_and_nothing_to_cut_trains_nothing(build, rows_NS):
    donor = build(shake=True).eval()
    sizes = {kind: units[0].units for kind, units in unit_sets(donor).items()}
    nothing = train_masks(donor, rows_NS, sizes, MaskOptions(), progress=False)
    assert not nothing.targets and not nothing.losses and nothing.largest_miss == 0
    chosen = choose_units(nothing.scores, sizes)
    assert all(len(indices) == sizes[kind] for kind, kept in chosen.items() for indices in kept)
    options = MaskOptions(steps=5, relaxation="gumbel_ste")
    runs = [train_masks(donor, rows_NS, sizes | {"ffn": 30}, options, seed, progress=False) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].scores["ffn"], runs[1].scores["ffn"])
    assert not torch.equal(runs[0].scores["ffn"], runs[2].scores["ffn"])
    assert set(runs[0].targets) == {"ffn"}
