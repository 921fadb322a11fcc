"""Kernels of attention that exist on CUDA alone, computed exactly in their place on a pretended device.

flash-attn and torch's attention of variable length are those of `tests/pretrain/exact_flash.py`, which check what they
are told. Flex attention, which would be compiled, is computed with the dense mask that its block mask stands for; the
mask's blocks are checked to leave nothing out.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import BlockMask
from transformers.integrations import flex_attention

from tests.device.pretended import PretendedDevice
from tests.pretrain.exact_flash import exact_flash


class Auxiliary(NamedTuple):
    """What flex attention returns besides its output."""

    lse: Tensor


def exact_flex(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    block_mask: BlockMask,
    scale: float | None = None,
    return_aux: Any = None,
    **_: Any,
) -> Any:
    """Flex attention without a change of scores, by its rule and by nothing else."""
    (batch, _, queries, _), keys = query_BHQD.shape, key_BGKD.shape[2]
    b, h, q, k = (
        torch.arange(extent, device=query_BHQD.device).view(*(-1 if place == axis else 1 for place in range(4)))
        for axis, extent in enumerate((batch, 1, queries, keys))
    )
    seen_B1QK = block_mask.mask_mod(b, h, q, k)
    height, width = block_mask.BLOCK_SIZE
    blocks = block_mask.to_dense().bool().repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    assert not (seen_B1QK & ~blocks[:, :, :queries, :keys]).any(), "a block that is needed is left out"
    output = F.scaled_dot_product_attention(
        query_BHQD, key_BGKD, value_BGKD, seen_B1QK, scale=scale, enable_gqa=query_BHQD.shape[1] != key_BGKD.shape[1]
    )
    if return_aux is None:
        return output
    return output, Auxiliary(torch.zeros(query_BHQD.shape[:3], device=query_BHQD.device))


def stand_in(monkeypatch: pytest.MonkeyPatch, device: PretendedDevice) -> None:
    """Installs all of them for the test; calls are written down as `flash_attn`, `varlen` and `flex`."""
    exact_flash(monkeypatch)

    def as_kernel(owner: Any, name: str, kernel: str) -> None:
        function = getattr(owner, name)

        @wraps(function)  # transformers asks for the signature
        def call(*args: Any, **kwargs: Any) -> Any:
            return device.kernel(kernel, function, *args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for package in ("flash_attn", "flash_attn_interface"):
        for name in ("flash_attn_func", "flash_attn_varlen_func"):
            as_kernel(sys.modules[package], name, "flash_attn")
    as_kernel(varlen, "varlen_attn", "varlen")
    monkeypatch.setattr(
        flex_attention,
        "compile_friendly_flex_attention",
        lambda *args, **kwargs: device.kernel("flex", exact_flex, *args, **kwargs),
    )
