"""Which attention a decoder trains with, decided once where `task.attention` is auto, and its last hidden states.

    rows of one document          sdpa: torch takes a causal kernel without a mask
    packed rows, on CUDA          variable length: flash-attn if it is installed, else torch's own kernel (bf16 or fp16,
                                  heads of up to 256, Ampere or newer); else flex attention
    packed rows, on a CPU         torch's flash kernel, document by document
    packed rows, elsewhere        sdpa with a dense mask

The step-0 audit prints the decision with its reason.

Shapes: B batch, S sequence, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.packed_attention import (
    PACKED_CPU,
    PACKED_FLEX,
    TORCH_VARLEN,
    has_torch_varlen,
    packed_arguments,
    register_packed_attention,
)
from data_pipeline.document_bounds import document_bounds
from data_pipeline.loader import Batch

AUTO = "auto"
UNDECIDED = "sdpa"
"""What a model is built or loaded with until its device and its type are known."""
AMPERE, HOPPER = (8, 0), (9, 0)
LARGEST_HEAD = 256
SMALLEST_FLEX_HEAD = 16


class Choice(NamedTuple):
    """An attention implementation and why it was taken."""

    name: str
    """As transformers knows it."""
    reason: str
    """For the audit."""


def built_with(asked: str) -> str:
    """The implementation that a model is built or loaded with when `asked` is asked for."""
    register_packed_attention()
    return UNDECIDED if asked == AUTO else asked


def decide(model: nn.Module, asked: str, device: torch.device, packed: bool) -> Choice:
    """Gives a model the attention that suits where it runs, if `asked` is auto; says what it has.

    Args:
        model: built or loaded with `built_with(asked)`; changed in place.
        asked: `task.attention`.
        device: where the batches are.
        packed: whether a row may hold several documents.
    """
    config = model.config
    if asked != AUTO:
        dense = packed and device.type == "cuda" and asked in ("sdpa", "eager")
        cost = "; it keeps S x S numbers of every row in every layer, auto would not" if dense else ""
        return Choice(config._attn_implementation, f"asked for: {asked}{cost}")  # type: ignore[union-attr]
    choice = choose(config, device, model.lm_head.weight.dtype, packed)  # type: ignore[arg-type, union-attr]
    if config._attn_implementation == UNDECIDED != choice.name:  # type: ignore[union-attr]
        model.set_attn_implementation(choice.name)  # type: ignore[operator]
    return choice._replace(name=config._attn_implementation)  # type: ignore[union-attr]


def choose(config: PanguPiConfig, device: torch.device, dtype: torch.dtype, packed: bool) -> Choice:
    """The attention for a model of this shape and type on that device."""
    if not packed:
        return Choice("sdpa", "auto: a row is one document, so no mask is needed")
    if device.type == "cpu":
        if config.attention_dropout:
            return Choice("sdpa", "auto: a dense mask, because torch's flash kernel for CPUs has no attention_dropout")
        return Choice(PACKED_CPU, "auto: torch's flash kernel for CPUs, document by document")
    if device.type != "cuda":
        return Choice("sdpa", f"auto: on {device.type} a dense mask; kernels of variable length need CUDA")
    name = str(dtype).removeprefix("torch.")
    # A pretended device says nothing of itself.
    capability = torch.cuda.get_device_capability(device) if torch.cuda.is_available() else AMPERE
    dropout = config.attention_dropout
    obstacle = ""
    if dtype not in (torch.bfloat16, torch.float16):
        obstacle = f"not in {name}"
    elif capability < AMPERE:
        obstacle = f"not on compute capability {capability[0]}.{capability[1]}"
    elif config.head_dim > LARGEST_HEAD or config.head_dim % 8:
        obstacle = f"not for heads of {config.head_dim}"
    if not obstacle:
        if capability >= HOPPER and is_flash_attn_3_available() and not dropout:
            return Choice("flash_attention_3", f"auto: on CUDA in {name}, flash-attn 3 is installed")
        if is_flash_attn_2_available():
            return Choice("flash_attention_2", f"auto: on CUDA in {name}, flash-attn is installed")
        if dropout:
            obstacle = "not with attention_dropout, without flash-attn"
        elif not has_torch_varlen():
            obstacle = f"not in torch {torch.__version__} without flash-attn"
        elif torch.version.hip is not None:
            obstacle = "not on ROCm without flash-attn"
        else:
            return Choice(
                TORCH_VARLEN, f"auto: on CUDA in {name}, torch's own variable length; no flash-attn is installed"
            )
    if dropout or config.head_dim < SMALLEST_FLEX_HEAD:
        what = f"attention_dropout {dropout}" if dropout else f"heads of {config.head_dim}"
        return Choice(
            "sdpa", f"auto: a dense mask, because flex attention has no {what} and variable length is {obstacle}"
        )
    return Choice(PACKED_FLEX, f"auto: flex attention on CUDA; variable length is {obstacle}")


def last_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states [B, S, D] of a micro-batch of packed rows, each document for itself.

    Args:
        model: a causal LM of ours.
        batch: `input_ids` and `position_ids`, and `document_bounds` of these; without them they are found here, which
            waits for the device.
    """
    positions_BS = batch["position_ids"]
    bounds = batch if "cu_seq_lens" in batch else document_bounds(positions_BS)
    implementation = model.config._attn_implementation  # type: ignore[union-attr]
    longest = len(bounds["longest_document"])
    arguments = packed_arguments(implementation, positions_BS, bounds["cu_seq_lens"], longest)  # type: ignore[arg-type]
    return model.model(  # type: ignore[operator]
        input_ids=batch["input_ids"], position_ids=positions_BS, use_cache=False, **arguments
    ).last_hidden_state


__all__ = ["AUTO", "Choice", "built_with", "choose", "decide", "last_hidden"]
