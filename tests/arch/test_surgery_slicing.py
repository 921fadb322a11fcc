"""What is cut is exactly what was asked, and nothing else changes."""

import copy

import pytest
import torch

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.accounting import count_parameters
from arch.surgery.errors import SurgeryError
from arch.surgery.groups import unit_sets
from arch.surgery.masks import gated
from arch.surgery.norms import norm_ratios
from arch.surgery.slicing import assemble, keep_layers, keep_rows, keep_units, scale_norms

from .conftest import PLAIN, SHAPE
from .surgery_cases import DONORS, all_units, fingerprint, some_units


@pytest.fixture(params=DONORS)
def donor(request, build):
    """Models in which no parameter is at identity."""
    return build(shake=True, **DONORS[request.param]).eval()


@torch.no_grad()
def logits(model, ids_BS):
    return model(input_ids=ids_BS).logits


def close(a, b, tolerance=1e-5):
    return torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def test_every_parameter_belongs_to_the_units_that_it_should(donor):
    """Members together cover each weight of the network in exactly the dimensions that can be cut."""
    dims = {name: set() for name, _ in donor.named_parameters()}
    for sets in unit_sets(donor).values():
        for units in sets:
            for member in units.members:
                assert donor.get_parameter(member.name).shape[member.dim] == units.units * member.block
                assert member.dim not in dims[member.name], f"{member.name}: dimension {member.dim} is cut twice"
                dims[member.name].add(member.dim)
    for name, covered in dims.items():
        matrix = donor.get_parameter(name).dim() == 2
        vocabulary = name in ("model.embed_tokens.weight", "lm_head.weight")
        scale = "act_fn" in name
        expected = {1} if vocabulary else {1} if scale else {0, 1} if matrix else {0}
        shared = name.endswith(("q_norm.weight", "k_norm.weight")) or (scale and donor.config.series_scope == "scalar")
        assert covered == (set() if shared else expected), name


def test_full_size_selection_is_the_donor_to_the_bit(donor, ids_BS):
    before, model = fingerprint(donor), keep_layers(donor, range(SHAPE["num_hidden_layers"]))
    for kind, kept in all_units(donor).items():
        model = keep_units(model, kind, kept)
    model = keep_rows(model, torch.arange(SHAPE["vocab_size"]))
    assert torch.equal(logits(model, ids_BS), logits(donor, ids_BS))
    assembled = assemble(model, donor.config)
    assert torch.equal(logits(assembled, ids_BS), logits(donor, ids_BS))
    assert fingerprint(assembled) == fingerprint(donor) == before


@pytest.mark.parametrize("kind", ["heads", "ffn", "shortcut"])
def test_a_sliced_model_is_the_donor_with_the_dropped_units_at_zero(donor, ids_BS, kind):
    sets = unit_sets(donor)
    if kind not in sets:
        pytest.skip("a plain LLaMA has no shortcut")
    kept, before = some_units(donor)[kind], fingerprint(donor)
    zeroed = copy.deepcopy(donor)
    for units, indices in zip(sets[kind], kept, strict=True):
        dropped = torch.tensor(sorted(set(range(units.units)) - set(indices.tolist())))
        for member in units.members:
            with torch.no_grad():
                zeroed.get_parameter(member.name).index_fill_(member.dim, member.entries(dropped), 0.0)
    smaller = keep_units(donor, kind, kept)
    assert unit_sets(smaller)[kind][0].units == len(kept[0])
    if kind == "ffn" and donor.config.mlp_bias is False and donor.config.series_scope == "scalar":
        # A neuron at zero adds nothing because u is zero, whatever the shared series does.
        assert donor.model.layers[0].mlp.act_fn.bias.any()
    close(logits(smaller, ids_BS), logits(zeroed, ids_BS))
    assert not torch.allclose(logits(smaller, ids_BS), logits(donor, ids_BS), atol=1e-3), "nothing was cut"
    assert fingerprint(donor) == before


def test_hidden_channels_are_exact_once_norms_divide_by_the_kept_count(donor, ids_BS):
    (kept,) = some_units(donor)["hidden"]
    gate = torch.zeros(1, SHAPE["hidden_size"])
    gate[0, kept] = 1.0
    with gated(donor, {"hidden": gate}):
        masked = logits(donor, ids_BS)
    close(logits(keep_units(donor, "hidden", [kept]), ids_BS), masked, 5e-5)


def test_gates_of_zero_and_one_are_the_sliced_model_for_all_kinds_at_once(donor, ids_BS):
    chosen, gates = some_units(donor), {}
    smaller = donor
    for kind, sets in unit_sets(donor).items():
        gates[kind] = torch.zeros(len(sets), sets[0].units)
        for row, indices in zip(gates[kind], chosen[kind], strict=True):
            row[indices] = 1.0
    for kind, kept in chosen.items():
        smaller = keep_units(smaller, kind, kept)
    with gated(donor, gates):
        masked = logits(donor, ids_BS)
    close(logits(smaller, ids_BS), masked, 5e-5)


def test_kept_layers_are_renumbered_and_still_decode_with_a_cache(build, ids_BS):
    donor = build(shake=True, num_hidden_layers=5).eval()
    smaller = keep_layers(donor, [0, 2, 4])
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1, 2]
    assert len(donor.model.layers) == donor.config.num_hidden_layers == 5
    assert donor.model.layers[4].self_attn.layer_idx == 4
    assert smaller.model.layers[1].mlp.up_proj.weight is donor.model.layers[2].mlp.up_proj.weight, "shared, not copied"
    with torch.no_grad():
        whole = smaller(input_ids=ids_BS, use_cache=False).logits
        first = smaller(input_ids=ids_BS[:, :12], use_cache=True)
        rest = smaller(input_ids=ids_BS[:, 12:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 12:], rtol=1e-4, atol=1e-3)


def test_vocabulary_rows_are_the_donors(donor, ids_BS):
    donor.config.eos_token_id, donor.config.bos_token_id, donor.config.pad_token_id = [2, 96], 1, 0
    kept = torch.tensor([1, *range(2, 97, 2)])
    smaller = keep_rows(donor, kept)
    new_BS = torch.randint(len(kept), (2, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits(smaller, new_BS), logits(donor, kept[new_BS])[..., kept])
    config = smaller.config
    assert (config.vocab_size, config.bos_token_id) == (len(kept), 0)
    assert config.eos_token_id == [1, len(kept) - 1] and config.pad_token_id is None
    assert (smaller.lm_head.weight is smaller.model.embed_tokens.weight) is donor.config.tie_word_embeddings


def test_a_target_gets_the_donors_weights_and_its_own_additions_at_identity(build, ids_BS):
    donor = build(shake=True, **PLAIN).eval()
    target = assemble(donor, PanguPiConfig(**SHAPE), seed=3)
    assert torch.equal(logits(target, ids_BS), logits(donor, ids_BS))
    assert sum(p.numel() for p in target.parameters()) == count_parameters(target.config).total
    assert target.model.layers[0].shortcut.down_weight.any() and not target.model.layers[0].shortcut.up_weight.any()
    again = assemble(donor, PanguPiConfig(**SHAPE), seed=3)
    assert fingerprint(again) == fingerprint(target)


def test_tied_into_untied_copies_and_untied_into_tied_keeps_the_embedding(build, ids_BS):
    tied, untied = (build(shake=True, **PLAIN, tie_word_embeddings=tie).eval() for tie in (True, False))
    opened = assemble(tied, untied.config)
    assert torch.equal(logits(opened, ids_BS), logits(tied, ids_BS))
    assert opened.lm_head.weight is not opened.model.embed_tokens.weight
    closed = assemble(untied, tied.config)
    assert closed.lm_head.weight is closed.model.embed_tokens.weight
    assert torch.equal(closed.model.embed_tokens.weight, untied.model.embed_tokens.weight)


def test_assembling_another_shape_is_refused(build):
    config = PanguPiConfig(**SHAPE | {"intermediate_size": 96})
    with pytest.raises(SurgeryError, match=r"mlp\.gate_proj\.weight has shape \[112, 64\] .* \[96, 64\]"):
        assemble(build(), config)


def test_rescaled_norms_keep_the_size_of_what_leaves_them(donor, ids_BS):
    everything = norm_ratios(donor, torch.arange(SHAPE["hidden_size"]), ids_BS)
    assert set(everything) == {name for name, _ in donor.named_parameters() if "norm" in name and "attn" not in name}
    assert all(ratio == pytest.approx(1.0) for ratio in everything.values())
    loud = copy.deepcopy(donor)
    with torch.no_grad():  # one channel is much larger than the others, as in real models
        loud.model.embed_tokens.weight[:, 7] *= 50
    quiet = torch.tensor([c for c in range(SHAPE["hidden_size"]) if c != 7])
    name = "model.layers.0.input_layernorm.weight"
    outputs = []
    for scale in (False, True):
        model = keep_units(loud, "hidden", [quiet])
        if scale:
            model = scale_norms(model, norm_ratios(loud, quiet, ids_BS))
        hook = model.model.layers[0].input_layernorm.register_forward_hook(lambda *a: outputs.append(a[-1].detach()))
        logits(model, ids_BS)
        hook.remove()
    original = []
    hook = loud.model.layers[0].input_layernorm.register_forward_hook(lambda *a: original.append(a[-1].detach()))
    logits(loud, ids_BS)
    hook.remove()
    wanted = original[0][..., quiet].abs().mean()
    assert outputs[0].abs().mean() > 2 * wanted, "without the quiet channel's neighbour the norm blows the rest up"
    assert outputs[1].abs().mean() == pytest.approx(float(wanted), rel=0.3), name
