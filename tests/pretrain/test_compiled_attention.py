"""Every attention of packed rows is compiled without breaks, however the documents lie.

The kernels of variable length are opaque operators to torch's compiler, as the real ones are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from arch.packed_attention import PACKED_FLEX, TORCH_VARLEN
from data_pipeline import Batch
from pretrain.compilation import blocks_of, compile_blocks, eager
from pretrain.tasks import LanguageModelTask
from tests.pretrain.conftest import TINY
from tests.pretrain.exact_flash import exact_flash, exact_varlen
from tests.pretrain.test_attention import build, make

VARIABLE_LENGTH = ("flash_attention_2", TORCH_VARLEN)
LAYOUTS = 6
LENGTH = 32


@torch.library.custom_op("tinypi_tests::exact_varlen", mutates_args=())
def opaque_varlen(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
    """`exact_varlen`, causal."""
    return exact_varlen(q_THD, k_TGD, v_TGD, bounds, longest, scale, causal=True)


@opaque_varlen.register_fake
def _(q_THD: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q_THD)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _gradients(ctx: Any, gradient_THD: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, bounds = (tensor.detach() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        inputs = [tensor.requires_grad_() for tensor in inputs]
        output_THD = exact_varlen(*inputs, bounds, *ctx.rest, causal=True)
    return (*torch.autograd.grad(output_THD, inputs, gradient_THD), None, None, None)


opaque_varlen.register_autograd(_gradients, setup_context=_keep)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False, deterministic: bool = False,
) -> Tensor:  # fmt: skip
    return opaque_varlen(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale)


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    return opaque_varlen(query, key, value, cu_seq_q, max_q, scale)


def packed(task: LanguageModelTask, seed: int) -> Batch:
    """Rows with documents of other lengths for every seed."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(4):
        positions = np.concatenate([np.arange(random.integers(1, LENGTH)) for _ in range(LENGTH)])[:LENGTH]
        ids = random.integers(0, TINY["vocab_size"], LENGTH)
        rows.append({"input_ids": ids, "labels": ids, "position_ids": positions})
    return task.collate(rows)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", [*VARIABLE_LENGTH, PACKED_FLEX, "sdpa"])
def test_layouts_of_documents_share_graphs_without_breaks(tmp_path, monkeypatch, name, recomputed):
    exact_flash(monkeypatch)
    monkeypatch.setattr("flash_attn.flash_attn_varlen_func", flash_attn_varlen_func)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    task = make(tmp_path, "auto" if name in (TORCH_VARLEN, PACKED_FLEX) else name)
    model = build(task, monkeypatch, name)
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if name in VARIABLE_LENGTH:
        model.bfloat16()  # as on a GPU; transformers says something of float32, which would be a break
    compile_blocks(blocks_of(model))
    with eager(model), torch.no_grad():  # as the audit does; transformers loads its kernels then
        task.loss(model, packed(task, LAYOUTS))
    model.train()
    torch._dynamo.utils.counters.clear()
    differentiated = name != PACKED_FLEX  # flex attention has no backward pass on a CPU
    for layout in range(LAYOUTS):
        with torch.set_grad_enabled(differentiated):
            total = task.loss(model, packed(task, layout)).total
        if differentiated:
            total.backward()
    assert not torch._dynamo.utils.counters["graph_break"]
    # One for the first layout, and one more when a size turns out to vary: documents, the longest, both.
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    torch._dynamo.reset()
