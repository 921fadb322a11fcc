"""The rotary frequencies stay in float32 when a model is cast, as DeepSpeed and teachers do."""

import copy

import pytest
import torch

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from pretrain.attention_checks import check_rotary
from tests.pretrain.conftest import TINY


def build(**fields):
    torch.manual_seed(0)
    return PanguPiForCausalLM(PanguPiConfig(**TINY | fields))


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.bfloat16(),
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to(device="cpu", dtype=torch.bfloat16),
        lambda model: model.double(),
        lambda model: copy.deepcopy(model.bfloat16()),
    ],
)
def test_no_cast_of_the_model_rounds_them(cast):
    expected = build().model.rotary_emb.inv_freq
    model = cast(build())
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32 and torch.equal(rotary.inv_freq, expected)
    assert model.lm_head.weight.dtype != torch.float32 and check_rotary(model).startswith("float32")


def test_they_move_to_a_device_with_the_model():
    model = build().to(device="meta", dtype=torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.is_meta and model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_cast_model_has_the_angles_of_float32():
    """At position 4,000, where bf16's rounding of the slowest frequencies is a tenth of a turn and more."""
    positions = torch.arange(4000)[None]
    states = torch.zeros(1, 1, dtype=torch.float32)
    exact = build().model.rotary_emb(states, positions)
    cast = build().bfloat16().model.rotary_emb(states, positions)
    assert all(torch.equal(left, right) for left, right in zip(exact, cast, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_audit_refuses_rounded_frequencies(dtype):
    """As deepspeed 0.18.0 leaves them, or another library that casts buffers one by one, and perhaps back."""
    model = build()
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.bfloat16().to(dtype)
    with pytest.raises(
        RuntimeError, match=r"rotary frequencies are in torch\.(bfloat16|float32) and off by [0-9.]+e-03"
    ):
        check_rotary(model)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_every_kind_of_scaling_passes(kind):
    scaling = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    model = build(rope_parameters=scaling, max_position_embeddings=128).bfloat16()
    model(torch.zeros(1, 100, dtype=torch.long))
    assert check_rotary(model).startswith("float32")
