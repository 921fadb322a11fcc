"""DeLVM's initialisation (docs/methods/delvm.md: initialisation) on transformers' names.

w1 = gate_proj, w2 = up_proj, w3 = down_proj.

| matrix | as meant (`delvm`) | as released (`delvm_released`) |
|---|---|---|
| input projection or table, head | 0.0052 | 0.0052 |
| query, key, value, gate | 0.006 | 0.006 |
| attention output, layer l = 0.. | 0.006 / sqrt(2 (l + 1)) | 0.006 / sqrt(2 (l + 1)) |
| up | 0.006 | 0.006 / sqrt(2 (l + 1)) |
| down | 0.006 / sqrt(2 (l + 1)) | 0.0015 |

The release scales the up projection with depth, where the matrix that writes to the residual stream is the down
projection. Biases are 0 and norms 1 in both. What LLaMA does not have keeps the initialisation of its own.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from arch.pangu_pi import PanguPiForCausalLM

OUTER_STD, INNER_STD, RELEASED_DOWN_STD = 0.0052, 0.006, 0.0015

Scheme = Literal["delvm", "delvm_released"]


@torch.no_grad()
def initialise(model: PanguPiForCausalLM, scheme: Scheme = "delvm") -> PanguPiForCausalLM:
    """Draws the matrices of `model` anew, from torch's global generator, in place; returns it."""
    (embedding,) = model.get_input_embeddings().parameters()
    embedding.normal_(std=OUTER_STD)
    for number, layer in enumerate(model.model.layers):
        scaled = INNER_STD / math.sqrt(2 * (number + 1))
        attention, feed_forward = layer.self_attn, layer.mlp
        up, down = (INNER_STD, scaled) if scheme == "delvm" else (scaled, RELEASED_DOWN_STD)
        for linear, std in (
            (attention.q_proj, INNER_STD),
            (attention.k_proj, INNER_STD),
            (attention.v_proj, INNER_STD),
            (attention.o_proj, scaled),
            (feed_forward.gate_proj, INNER_STD),
            (feed_forward.up_proj, up),
            (feed_forward.down_proj, down),
        ):
            _draw(linear, std)
    _draw(model.lm_head, OUTER_STD)
    return model


def _draw(linear: nn.Linear, std: float) -> None:
    linear.weight.normal_(std=std)
    if linear.bias is not None:
        linear.bias.zero_()


__all__ = ["Scheme", "initialise"]
