"""DeLVM's shapes: parameters and FLOPs, by arithmetic and by counting (docs/methods/delvm.md: parameters)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from arch.delvm.accounting import exported_parameters, image_flops, trainable_parameters
from arch.delvm.factorised_embedding import factorise
from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.export import llama_config
from arch.pangu_pi.load_config import load_model_config

MODELS = Path(__file__).resolve().parents[2] / "configs" / "delvm" / "models"
FULL = {"80m": (79_268_352, 83_429_888), "300m": (291_181_568, 299_504_640), "1b": (1_147_545_600, 1_164_191_744)}
CODE_FEATURES = 64


@pytest.mark.parametrize("name", FULL)
def test_parameters_are_the_papers_counted_and_computed(name):
    config = load_model_config(MODELS / f"{name}.yaml")
    assert (trainable_parameters(config, CODE_FEATURES), exported_parameters(config)) == FULL[name]
    with torch.device("meta"):
        model, llama = PanguPiForCausalLM(config), LlamaForCausalLM(llama_config(config))
        assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in llama.named_parameters()}
        assert sum(p.numel() for p in llama.parameters()) == FULL[name][1] == count_parameters(config).total
        factorise(model, torch.empty(8192, CODE_FEATURES))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == FULL[name][0]
    assert {f"{p}_proj.bias" for p in "qkvo"} <= {n.split("self_attn.")[-1] for n, _ in model.named_parameters()}
    assert config.rms_norm_eps == 1e-5 and config.rope_parameters["rope_theta"] == 10_000
    assert config.hidden_size // config.num_attention_heads == 128


def test_flops_of_an_image_are_the_papers():
    giga = {name: image_flops(load_model_config(MODELS / f"{name}.yaml")) / 1e9 for name in ("300m", "1b")}
    assert giga == pytest.approx({"300m": 1191.3, "1b": 4696.4}, abs=0.05)
    config = load_model_config(MODELS / "300m.yaml")
    layers, d, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    assert image_flops(config) == 2 * 2047 * (layers * (4 * d * d + 3 * d * f) + 8192 * d)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*_cpu.yaml")), ids=lambda path: path.stem)
def test_the_small_shapes_count_right_and_have_untied_heads(path):
    config = load_model_config(path)
    assert config.vocab_size == 512 and not config.tie_word_embeddings and config.attention_bias
    model = factorise(PanguPiForCausalLM(config), torch.randn(512, 32))
    assert sum(p.numel() for p in model.parameters()) == trainable_parameters(config, 32)
    assert config.is_llama == (path.stem != "pangu_pi_cpu")


def test_the_feed_forward_width_follows_from_the_width():
    """f = 256 ceil(floor(8 d / 3) / 256), the formula of docs/methods/delvm.md: transformer."""
    for name in FULL:
        config = load_model_config(MODELS / f"{name}.yaml")
        assert config.intermediate_size == 256 * -(-(8 * config.hidden_size // 3) // 256)
