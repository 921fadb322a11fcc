"""Causality, cached decoding, and documents of one row that never meet."""

import pytest
import torch
from transformers import DynamicCache

VARIANTS = [
    {},
    {"shortcut_input": "raw", "series_terms": 3, "qk_norm": True, "final_logit_softcapping": 5.0},
    {"num_key_value_heads": 4, "tie_word_embeddings": True},
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_token_changes_nothing_before_it(build, ids_BS, attention):
    model = build(shake=True).eval()
    model.set_attn_implementation(attention)
    changed_BS = ids_BS.clone()
    changed_BS[:, 12] = (changed_BS[:, 12] + 1) % model.config.vocab_size
    with torch.no_grad():
        before, after = model(ids_BS).logits, model(changed_BS).logits
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.isclose(before[:, 12:], after[:, 12:]).all(dim=-1).any()


@pytest.mark.parametrize("fields", VARIANTS)
def test_cached_decoding_equals_the_full_forward(build, ids_BS, fields):
    model = build(shake=True, **fields).eval()
    with torch.no_grad():
        full = model(ids_BS).logits
        cache = DynamicCache(config=model.config)
        pieces = [ids_BS[:, :7], *ids_BS[:, 7:].split(1, dim=1)]
        steps = [model(piece, past_key_values=cache, use_cache=True).logits for piece in pieces]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS)
def test_generation_with_and_without_the_cache_is_the_same(build, ids_BS, fields):
    model = build(shake=True, **fields).eval()
    prompt = {"input_ids": ids_BS[:, :5], "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(**prompt, **options, use_cache=True)
    assert cached.shape == (2, 17)
    assert torch.equal(cached, model.generate(**prompt, **options, use_cache=False))


def test_left_padding_does_not_change_generation(build, ids_BS):
    model = build(shake=True).eval()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = model.generate(ids_BS[:1, :5], attention_mask=torch.ones(1, 5, dtype=torch.long), **options)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids_BS[:1, :5]], dim=1)
    mask = (torch.arange(8) >= 3).long()[None]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], alone)


def test_only_the_logits_asked_for_are_computed(build, ids_BS):
    model = build(shake=True).eval()
    with torch.no_grad():
        assert torch.equal(model(ids_BS, logits_to_keep=3).logits, model(ids_BS).logits[:, -3:])


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_documents_of_a_packed_row_do_not_see_each_other(build, ids_BS, attention):
    """Rows A A A A A A A | B B B B B B B B B | C C C C: editing A leaves B and C as they were, bit for bit."""
    lengths = [7, 9, 4]
    positions_BS = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    model = build(shake=True).eval()
    model.set_attn_implementation(attention)
    changed_BS = ids_BS.clone()
    changed_BS[:, :7] = (changed_BS[:, :7] + 1) % model.config.vocab_size
    # What matters here is the mask; flex attention's kernel would take a minute to compile.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        before = model(ids_BS, position_ids=positions_BS, use_cache=False).logits
        after = model(changed_BS, position_ids=positions_BS, use_cache=False).logits
        alone = torch.cat([model(piece, use_cache=False).logits for piece in ids_BS.split(lengths, dim=1)], dim=1)
    assert torch.equal(before[:, 7:], after[:, 7:])
    assert not torch.isclose(before[:, :7], after[:, :7]).all(dim=-1).any()
    torch.testing.assert_close(before, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_hidden_states_and_attentions_are_recorded(build, ids_BS, qk_norm):
    model = build(qk_norm=qk_norm).eval()
    model.set_attn_implementation("eager")
    output = model(ids_BS, output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in output.hidden_states] == [(2, 20, 64)] * 4
    assert [a.shape for a in output.attentions] == [(2, 4, 20, 20)] * 3
