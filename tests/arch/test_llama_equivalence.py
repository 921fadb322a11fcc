"""Without the additions the model is LLaMA bit for bit, and with them it starts as LLaMA."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM

from .conftest import PLAIN, SHAPE

LLAMA_SHAPE = {name: value for name, value in SHAPE.items() if name != "shortcut_reduction"}


def llama(**fields) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA_SHAPE, **fields))


def trained_once(model, ids_BS, attention):
    model.set_attn_implementation(attention)
    output = model(input_ids=ids_BS, labels=ids_BS)
    output.loss.backward()
    return output


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_plain_model_is_bit_equal_to_llama(build, ids_BS, fields, attention):
    theirs = llama(**fields)
    ours = build(**PLAIN, **fields)
    outputs = [trained_once(model, ids_BS, attention) for model in (theirs, ours)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


def test_soft_capped_logits_are_those_of_the_plain_model_through_tanh(build, ids_BS):
    plain, capped = build(**PLAIN), build(**PLAIN, final_logit_softcapping=0.3)
    assert capped.state_dict().keys() == plain.state_dict().keys()
    output = capped(ids_BS, labels=ids_BS)
    torch.testing.assert_close(output.logits, 0.3 * torch.tanh(plain(ids_BS).logits / 0.3))
    loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())
    torch.testing.assert_close(output.loss, loss)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_normed_queries_and_keys_are_bit_equal_to_qwen3(build, ids_BS, attention):
    ours = build(**PLAIN, qk_norm=True, shake=True)
    theirs = Qwen3ForCausalLM(Qwen3Config(**LLAMA_SHAPE, head_dim=16, use_sliding_window=False))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    outputs = [trained_once(model, ids_BS, attention) for model in (theirs, ours)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter.grad, ours.get_parameter(name).grad), name
    fresh = build(**PLAIN, qk_norm=True).state_dict()
    for name, weight in build(**PLAIN).state_dict().items():
        assert torch.equal(weight, fresh.pop(name)), f"{name} depends on the norms"
    assert len(fresh) == 2 * SHAPE["num_hidden_layers"] and all((weight == 1).all() for weight in fresh.values())


def test_state_dicts_load_both_ways(build):
    theirs, ours = llama(), build(seed=1, **PLAIN)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    llama().load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"series_learn_first": False, "shortcut_count": 2},
        {"series_scope": "scalar", "shortcut_input": "raw"},
        {"series_activations": ["silu", "gelu", "tanh"], "series_terms": 3},
        {"series_terms": 1},
        {"shortcut_count": 0},
    ],
)
def test_default_initialisation_equals_the_baseline_at_step_zero(build, ids_BS, fields):
    baseline, model = build(**PLAIN), build(**fields)
    shared = model.state_dict()
    for name, weight in baseline.state_dict().items():
        assert torch.equal(weight, shared[name]), f"{name} depends on the additions"
    assert torch.equal(baseline(ids_BS).logits, model(ids_BS).logits)


@pytest.mark.parametrize("fields", [{"series_init": "trunc_normal"}, {"shortcut_init": "trunc_normal"}])
def test_drawn_initialisation_is_not_the_identity(build, ids_BS, fields):
    assert not torch.equal(build(**PLAIN)(ids_BS).logits, build(**fields)(ids_BS).logits)


def test_new_parameters_differ_between_layers_and_repeat_with_the_seed(build):
    fields = {"series_init": "trunc_normal", "shortcut_init": "trunc_normal"}
    first, again, other = build(**fields), build(**fields), build(seed=1, **fields)
    new = [name for name, _ in first.named_parameters() if "shortcut" in name or name.endswith("scale")]
    drawn = dict(first.named_parameters())
    assert len({drawn[name].flatten()[-1].item() for name in new}) == len(new), "two modules drew the same numbers"
    for name in new:
        assert torch.equal(drawn[name], again.get_parameter(name))
        assert not torch.equal(drawn[name], other.get_parameter(name))
        assert drawn[name].flatten()[-40:].std().item() == pytest.approx(0.02, rel=0.5)


def test_relu_terms_start_alive(build):
    scale = build(series_activations=["silu", "relu"]).model.layers[0].mlp.act_fn.scale
    assert (scale[0] == 1).all() and 0.01 < scale[1].std() < 0.03


@pytest.mark.parametrize("scheme", ["residual_scaled", "layer_scaled", "zero_output"])
def test_init_schemes_scale_the_matrices_that_write_to_the_residual_stream(build, scheme):
    constant, scaled = build().state_dict(), build(init_scheme=scheme).state_dict()
    for name, weight in constant.items():
        layer = int(name.split(".")[2]) if "layers" in name else 0
        depth = SHAPE["num_hidden_layers"] if scheme == "residual_scaled" else layer + 1
        writes = name.endswith(("o_proj.weight", "mlp.down_proj.weight"))
        expected = torch.zeros_like(weight) if scheme == "zero_output" else weight / (2 * depth) ** 0.5
        torch.testing.assert_close(scaled[name], expected if writes else weight)


def test_loading_llama_weights_leaves_the_additions_at_identity(build, ids_BS, tmp_path):
    theirs = llama()
    theirs.save_pretrained(tmp_path)
    ours = PanguPiForCausalLM.from_pretrained(tmp_path, config=PanguPiConfig(**SHAPE))
    assert torch.equal(theirs.eval()(ids_BS).logits, ours(ids_BS).logits)
    assert ours.model.layers[0].shortcut.down_weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_copy_and_save_load_keep_every_parameter(build, tmp_path):
    model = build(shake=True)
    model.save_pretrained(tmp_path)
    loaded = PanguPiForCausalLM.from_pretrained(tmp_path)
    for other in (loaded, copy.deepcopy(model)):
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name]), name
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
