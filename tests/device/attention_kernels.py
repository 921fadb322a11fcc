"""Which kernel a CUDA device runs for scaled_dot_product_attention.

The rules are those of `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` (torch 2.9 to 2.14) on compute capability
8.0 and later, as far as they depend on what the caller gives:

    flash        half types, no mask, heads of one width up to 256 (padded to a multiple of 8); groups of queries too
    efficient    any float type, a mask too, which is copied into the query's type with rows of a multiple of 8; queries
                 in groups only if their keys were repeated
    math         all else: the scores [B, H, Q, K] exist

On Hopper and later cuDNN's kernel may take the place of either fused one; it makes no scores either.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLASH, EFFICIENT, MATH = "flash", "efficient", "math"
HALF = (torch.float16, torch.bfloat16)
WIDEST = 256
"""Head width that the flash kernels have."""


def sdpa_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    """The kernel class of one call, [B, H, Q, E] each; see the head of this file."""
    if query.dim() != 4 or query.dtype not in (*HALF, torch.float32):
        return MATH
    grouped = query.shape[1] != key.shape[1]
    if attn_mask is None and query.dtype in HALF and query.shape[-1] <= WIDEST and query.shape[-1] == value.shape[-1]:
        return FLASH
    return MATH if grouped else EFFICIENT
