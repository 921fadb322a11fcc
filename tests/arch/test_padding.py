"""Packed rows have no padding, so no token is frozen: not in ours, not in what is loaded, not in what is exported.

In many vocabularies (GPT-2, SmolLM2, Qwen) one token begins, ends and pads. LLaMA keeps the embedding of `pad_token_id`
at zero, without gradient, and so the first prediction of every document at what the head says of nothing.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from arch.pangu_pi.export import export_model, llama_config
from arch.pangu_pi.load_weights import load_causal_lm
from arch.surgery.slicing import keep_rows

from .conftest import PLAIN, SHAPE

ONE_TOKEN = {"bos_token_id": 5, "eos_token_id": 5, "pad_token_id": 5}
LLAMA_SHAPE = {name: value for name, value in SHAPE.items() if name != "shortcut_reduction"}


@pytest.fixture
def packed_BS() -> torch.Tensor:
    """Rows in which every token occurs, the one with all roles most often."""
    ids_T = torch.cat([torch.tensor([5, token, 5]) for token in range(SHAPE["vocab_size"])])
    return ids_T[:288].view(6, 48)


def gradient(model, ids_BS: torch.Tensor) -> torch.Tensor:
    """Of the embedding."""
    model.zero_grad()
    model(input_ids=ids_BS, labels=ids_BS).loss.backward()
    return model.get_input_embeddings().weight.grad


@pytest.mark.parametrize("fields", [{}, PLAIN, {"tie_word_embeddings": True}])
def test_every_embedding_learns_whatever_its_roles(build, packed_BS, fields):
    model, plain = build(**fields, **ONE_TOKEN), build(**fields, bos_token_id=None, eos_token_id=None)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), f"{name} depends on pad_token_id"
    gradient_VD = gradient(model, packed_BS)
    assert torch.equal(gradient_VD, gradient(plain, packed_BS))
    assert (gradient_VD[packed_BS.unique()].abs().sum(dim=1) > 0).all()
    assert model.get_input_embeddings().weight[5].abs().sum() > 0


def test_llama_differs_in_the_gradient_of_its_padding_token_and_in_nothing_else(build, packed_BS):
    """The promise that n = 1, T = 0 is LLaMA, where a padding token is set."""
    torch.manual_seed(0)
    theirs, ours = LlamaForCausalLM(LlamaConfig(**LLAMA_SHAPE, **ONE_TOKEN)), build(**PLAIN, **ONE_TOKEN)
    for name, weight in theirs.state_dict().items():
        kept = torch.arange(len(weight)) != (5 if "embed_tokens" in name else -1)
        assert torch.equal(weight[kept], ours.state_dict()[name][kept])
    assert not theirs.model.embed_tokens.weight[5].any()
    ours.load_state_dict(theirs.state_dict())
    outputs = [model(input_ids=packed_BS, labels=packed_BS) for model in (theirs, ours)]
    assert torch.equal(outputs[0].logits, outputs[1].logits) and torch.equal(outputs[0].loss, outputs[1].loss)
    their_VD, our_VD = gradient(theirs, packed_BS), gradient(ours, packed_BS)
    others = torch.arange(len(our_VD)) != 5
    assert torch.equal(their_VD[others], our_VD[others]) and not their_VD[5].any() and our_VD[5].any()
    rest = {name: p.grad for name, p in theirs.named_parameters() if "embed_tokens" not in name}
    assert all(torch.equal(value, ours.get_parameter(name).grad) for name, value in rest.items())


def test_what_is_loaded_and_cut_learns_too(packed_BS, tmp_path):
    """Initial weights, teachers and donors come from transformers directories, where that row is zero."""
    LlamaForCausalLM(LlamaConfig(**LLAMA_SHAPE, **ONE_TOKEN)).save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path)
    assert gradient(loaded, packed_BS)[5].any()
    smaller = keep_rows(loaded, torch.arange(50))
    assert gradient(smaller, packed_BS % 50)[5].any()


@pytest.mark.parametrize("fields", [PLAIN, {}])
def test_an_export_freezes_no_token_that_begins_or_ends_documents(build, packed_BS, tmp_path, fields):
    model = build(**fields, **ONE_TOKEN)
    export_model(model, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert torch.equal(gradient(reloaded, packed_BS), gradient(model, packed_BS))
    # What generation pads with is not forgotten.
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["pad_token_id"] == 5


def test_an_export_keeps_a_padding_token_of_its_own(build, tmp_path):
    export_model(build(**PLAIN, bos_token_id=1, eos_token_id=[2, 4], pad_token_id=3), tmp_path / "own")
    assert json.loads((tmp_path / "own/config.json").read_text())["pad_token_id"] == 3


@pytest.mark.parametrize("pad", [2, 3, -1, SHAPE["vocab_size"]])
def test_llama_is_told_of_no_padding_token_that_is_another_or_none(build, pad):
    """-1 and one past the end are in configurations that people have; LLaMA freezes the last row, or refuses."""
    model = build(**PLAIN, bos_token_id=2, eos_token_id=[4, 3], pad_token_id=pad)
    assert llama_config(model.config).pad_token_id is None
