"""The factorised embedding of visual sentences (docs/methods/delvm.md: transformer)."""

from __future__ import annotations

import copy

import pytest
import torch

from arch.delvm.factorised_embedding import FactorisedEmbedding, factorise, fold_state_dict
from arch.delvm.initialisation import initialise
from arch.pangu_pi.load_weights import load_causal_lm

from .conftest import PLAIN, SHAPE

V, C, D = SHAPE["vocab_size"], 7, SHAPE["hidden_size"]


@pytest.fixture
def codebook_VC() -> torch.Tensor:
    return torch.randn(V, C, generator=torch.Generator().manual_seed(1))


def test_it_is_the_product_and_folds_into_a_table(codebook_VC, ids_BS):
    embedding = FactorisedEmbedding(codebook_VC, D, std=0.02)
    expected = (codebook_VC.double() @ embedding.projection.weight.double().T)[ids_BS]
    torch.testing.assert_close(embedding(ids_BS).double(), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(embedding.fold()(ids_BS), embedding.fold().weight[ids_BS])
    assert [name for name, _ in embedding.named_parameters()] == ["projection.weight"]
    assert embedding.projection.weight.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("additions", [PLAIN, {}], ids=["llama", "pangu_pi"])
def test_the_folded_model_has_the_same_logits(build, codebook_VC, ids_BS, additions):
    model = factorise(build(**additions, attention_bias=True), codebook_VC).double().eval()
    assert model.model.embed_tokens.codebook.dtype == torch.float32
    folded = copy.deepcopy(model)
    folded.set_input_embeddings(model.model.embed_tokens.fold())
    wanted, found = model(ids_BS).logits, folded(ids_BS).logits
    assert (wanted - found).abs().max() <= 1e-12 * wanted.abs().max()
    state = fold_state_dict(model.state_dict())
    assert torch.equal(state["model.embed_tokens.weight"], folded.state_dict()["model.embed_tokens.weight"])
    assert set(state) == set(build(**additions, attention_bias=True).state_dict())
    assert fold_state_dict(state).keys() == state.keys()


def test_ten_steps_with_decay_move_the_projection_and_no_bit_of_the_codebook(build, codebook_VC, ids_BS):
    model = factorise(build(**PLAIN), codebook_VC).train()
    embedding = model.model.embed_tokens
    before = embedding.projection.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(10):
        model(input_ids=ids_BS, labels=ids_BS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(embedding.codebook, codebook_VC)
    assert not embedding.codebook.requires_grad and embedding.codebook.grad is None
    assert all(state["exp_avg"].shape != codebook_VC.shape for state in optimizer.state.values())
    assert not torch.equal(embedding.projection.weight, before)


def test_a_change_of_type_leaves_the_codebook_alone(codebook_VC, ids_BS):
    embedding = FactorisedEmbedding(codebook_VC, D).bfloat16()
    assert torch.equal(embedding.codebook, codebook_VC) and embedding(ids_BS).dtype == torch.bfloat16
    assert embedding.fold().weight.dtype == torch.bfloat16
    assert embedding.to("meta").codebook.is_meta


def test_a_folded_table_gives_its_projection_back(codebook_VC):
    embedding, other = FactorisedEmbedding(codebook_VC, D), FactorisedEmbedding(codebook_VC, D)
    other.unfold_(embedding.fold().weight)
    torch.testing.assert_close(other.projection.weight, embedding.projection.weight, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="not a product with this codebook"):
        other.unfold_(torch.randn(V, D))
    with pytest.raises(ValueError, match=r"shape \(97, 8\), the model wants \(97, 64\)"):
        other.unfold_(torch.randn(V, 8))


def test_what_cannot_be_factorised_is_refused(build, codebook_VC):
    with pytest.raises(ValueError, match="tie_word_embeddings: false"):
        factorise(build(tie_word_embeddings=True), codebook_VC)
    with pytest.raises(ValueError, match="96 codes, the model a vocab_size of 97"):
        factorise(build(), codebook_VC[1:])
    with pytest.raises(ValueError, match="expected"):
        FactorisedEmbedding(codebook_VC[0], D)


@pytest.mark.parametrize("scheme", ["delvm", "delvm_released"])
def test_the_initialisation_is_that_of_the_table(build, codebook_VC, scheme):
    torch.manual_seed(3)
    model = initialise(factorise(build(**PLAIN, attention_bias=True, num_hidden_layers=4), codebook_VC), scheme)
    head = model.lm_head.weight
    assert head.std().item() == pytest.approx(0.0052, rel=0.1)
    assert model.model.embed_tokens.projection.weight.std().item() == pytest.approx(0.0052, rel=0.15)
    for number, layer in enumerate(model.model.layers):
        scaled = 0.006 / (2 * (number + 1)) ** 0.5
        up, down = (0.006, scaled) if scheme == "delvm" else (scaled, 0.0015)
        expected = {
            "self_attn.q_proj": 0.006, "self_attn.k_proj": 0.006, "self_attn.v_proj": 0.006,
            "self_attn.o_proj": scaled, "mlp.gate_proj": 0.006, "mlp.up_proj": up, "mlp.down_proj": down,
        }  # fmt: skip
        for name, std in expected.items():
            linear = layer.get_submodule(name)
            assert linear.weight.std().item() == pytest.approx(std, rel=0.1), f"layer {number} {name}"
            assert linear.bias is None or not linear.bias.any()
        assert torch.equal(layer.input_layernorm.weight, torch.ones(D))


def test_an_export_reloads_folded(build, codebook_VC, ids_BS, tmp_path):
    model = factorise(build(**PLAIN), codebook_VC).eval()
    build(**PLAIN).save_pretrained(tmp_path, state_dict=fold_state_dict(model.state_dict()))
    torch.testing.assert_close(load_causal_lm(tmp_path)(ids_BS).logits, model(ids_BS).logits, rtol=1e-5, atol=1e-6)
