"""The loss of a model on rows of tokens, whole or with layers bypassed.

Shapes: N rows, B rows of one batch, S tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..pangu_pi import PanguPiForCausalLM


def next_token_loss(model: PanguPiForCausalLM, hidden_BSD: torch.Tensor, ids_BS: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token from the last hidden states, a scalar in float32.

    Row by row, so that the logits of one row [S, V] exist at a time (without gradients).
    """
    total = torch.zeros((), device=hidden_BSD.device)
    for hidden_SD, ids_S in zip(hidden_BSD, ids_BS, strict=True):
        logits_SV = model.lm_head(hidden_SD[:-1]).float()
        total = total + nn.functional.cross_entropy(logits_SV, ids_S[1:], reduction="sum")
    return total / ids_BS[:, 1:].numel()


def batches(rows_NS: torch.Tensor, size: int, model: PanguPiForCausalLM) -> Iterator[torch.Tensor]:
    """The rows in batches of at most `size`, on the model's device."""
    for rows_BS in rows_NS.split(size):
        yield rows_BS.to(model.device)


@contextmanager
def gradients_of_weights(model: PanguPiForCausalLM, wanted: bool) -> Iterator[None]:
    """Inside, all weights take gradients, or none does; afterwards each is as it was."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter, before in required:
            parameter.requires_grad_(before)


@torch.no_grad()
def mean_loss(model: PanguPiForCausalLM, rows_NS: torch.Tensor, batch: int = 4) -> float:
    """Mean next-token loss over all rows, in nats."""
    total = 0.0
    for ids_BS in batches(rows_NS, batch, model):
        hidden_BSD = model.model(input_ids=ids_BS, use_cache=False).last_hidden_state
        total += float(next_token_loss(model, hidden_BSD, ids_BS)) * len(ids_BS)
    return total / len(rows_NS)


@contextmanager
def only_layers(model: PanguPiForCausalLM, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the model consists of these layers; `layers` of all of them is the model itself, to the bit."""
    whole = model.model.layers
    model.model.layers = nn.ModuleList(layers)
    try:
        yield
    finally:
        model.model.layers = whole


@torch.no_grad()
def layer_inputs(model: PanguPiForCausalLM, ids_BS: torch.Tensor) -> list[torch.Tensor]:
    """What enters every layer, [B, S, D] each, and last what leaves the final layer before the norm."""
    states: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        for module in (*model.model.layers, model.model.norm)
    ]
    try:
        model.model(input_ids=ids_BS, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states


__all__ = ["batches", "gradients_of_weights", "layer_inputs", "mean_loss", "next_token_loss", "only_layers"]
