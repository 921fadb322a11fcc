"""Flash kernels that compute exactly, on any device: what they are told is checked, and what they return is right.

`exact_flash(monkeypatch)` puts them in the place of the package flash-attn, under transformers' own integration, and of
torch's attention of variable length. A model may then be built with `flash_attention_2` on a CPU. It returns the calls.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import varlen
from transformers import PreTrainedModel


def exact_attention(
    query_BSHD: Tensor, key_BSGD: Tensor, value_BSGD: Tensor, scale: float | None, causal: bool
) -> Tensor:
    """Attention of whole rows; with fewer heads of keys than of queries each serves several."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query_BSHD, key_BSGD, value_BSGD))
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    ).transpose(1, 2)


def exact_varlen(
    query_THD: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    bounds: Tensor,
    longest: Any,
    scale: float | None,
    causal: bool,
) -> Tensor:
    """Attention of one document after the other, and everything that the real kernels expect of the bounds."""
    assert query_THD.ndim == key_TGD.ndim == value_TGD.ndim == 3
    assert bounds.dtype == torch.int32 and bounds.is_contiguous() and bounds.device == query_THD.device
    assert bounds[0] == 0 and bounds[-1] == len(query_THD) == len(key_TGD)
    lengths = bounds.diff()
    assert (lengths > 0).all()
    assert type(longest) is int, f"{longest!r}: a kernel would have to wait for it"
    assert longest >= int(lengths.max())
    pieces = [tensor.split(lengths.tolist()) for tensor in (query_THD, key_TGD, value_TGD)]
    return torch.cat(
        [exact_attention(q[None], k[None], v[None], scale, causal)[0] for q, k, v in zip(*pieces, strict=True)]
    )


def exact_flash(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Installs the stand-ins for the test; returns a list to which each call adds the name of the kernel called."""
    calls: list[str] = []

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
        causal: bool = False, deterministic: bool = False,
    ) -> Tensor:  # fmt: skip
        calls.append("flash_attn_func")
        return exact_attention(q, k, v, softmax_scale, causal)

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
        deterministic: bool = False,
    ) -> Tensor:  # fmt: skip
        calls.append("flash_attn_varlen_func")
        assert torch.equal(cu_seqlens_q, cu_seqlens_k) and max_seqlen_q == max_seqlen_k and not dropout_p
        return exact_varlen(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale, causal)

    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        calls.append("varlen_attn")
        assert enable_gqa == (query.shape[1] != key.shape[1]) and torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k
        return exact_varlen(query, key, value, cu_seq_q, max_q, scale, window_size == (-1, 0))

    def module(name: str, **members: Any) -> None:
        made = types.ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for member, value in members.items():
            setattr(made, member, value)
        monkeypatch.setitem(sys.modules, name, made)

    kernels = {
        "flash_attn_func": flash_attn_func,
        "flash_attn_varlen_func": flash_attn_varlen_func,
        "flash_attn_with_kvcache": None,
    }
    module("flash_attn", **kernels)
    module("flash_attn.bert_padding", pad_input=flash_utils._pad_input, unpad_input=flash_utils._unpad_input)
    module("flash_attn_interface", **kernels)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(flash_utils, "is_flash_attn_3_available", lambda: True)
    for loaded in ("_loaded_implementation", "_flash_fn"):  # what was imported before is imported anew
        monkeypatch.setattr(flash_utils, loaded, None, raising=False)
    adjust = PreTrainedModel._check_and_adjust_attn_implementation

    def permissive(self: Any, name: str | None, *rest: Any, **options: Any) -> str:
        return name if name and name.startswith("flash_attention") else adjust(self, name, *rest, **options)

    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", permissive)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    return calls
