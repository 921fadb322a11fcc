"""Compiled blocks with attention of variable length: one graph for all layers, and one more for all other bounds."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.pangu_pi.packed_attention import PACKED_CPU, TORCH_VARLEN
from data_pipeline.document_bounds import document_bounds
from pretrain.attention import built_with, last_hidden
from pretrain.compilation import blocks_of, compile_blocks
from tests.pretrain.conftest import TINY
from tests.pretrain.exact_flash import exact_flash, exact_varlen

MICRO_BATCHES = [[[5, 27], [32]], [[9, 23], [31, 1]], [[1, 2, 29], [4, 4, 24]], [[32], [32]]]
LIBRARY = "tinypi_tests"


@pytest.fixture
def kernel() -> Any:
    """The exact kernel as the operator that flash-attn and torch register: closed to the compiler."""

    @torch.library.custom_op(f"{LIBRARY}::varlen", mutates_args=())
    def varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
        return exact_varlen(query, key, value, bounds, longest, scale, True)

    @varlen.register_fake
    def _(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
        return torch.empty_like(query)

    @torch.library.custom_op(f"{LIBRARY}::varlen_backward", mutates_args=())
    def backward(
        gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        pieces = [x.transpose(0, 1).float().split(bounds.diff().tolist(), 1) for x in (gradient, query, key, value)]
        gradients = []
        for g, q, k, v in zip(*pieces, strict=True):
            above = torch.ones(g.shape[1], g.shape[1]).triu(1).bool()
            p = (scale * q @ k.mT).masked_fill(above, -torch.inf).softmax(-1)
            through = g @ v.mT
            s = scale * p * (through - (through * p).sum(-1, keepdim=True))
            gradients.append((s @ k, s.mT @ q, p.mT @ g))
        whole = (torch.cat(parts, 1).transpose(0, 1).to(query.dtype) for parts in zip(*gradients, strict=True))
        return tuple(part.contiguous() for part in whole)

    @backward.register_fake
    def _(
        gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.longest, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    def gradients(ctx: Any, gradient: Tensor) -> Any:
        return *backward(gradient, *ctx.saved_tensors, ctx.longest, ctx.scale), None, None, None

    varlen.register_autograd(gradients, setup_context=save)
    return varlen


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, checkpointing", [(TORCH_VARLEN, True), ("flash_attention_2", False), (PACKED_CPU, True)]
)
def test_graphs_do_not_multiply_with_documents(name, checkpointing, kernel, monkeypatch):
    exact_flash(monkeypatch)

    def flash(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float = 1.0, causal: bool = False,
    ) -> Tensor:  # fmt: skip
        return kernel(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale)

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float = 1.0, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        return kernel(q, k, v, cu_seq_q, max_q, scale)

    monkeypatch.setattr("flash_attn.flash_attn_varlen_func", flash)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    config = PanguPiConfig(**TINY)
    config._attn_implementation = built_with("auto")
    models = [PanguPiForCausalLM(config).bfloat16() for _ in range(2)]  # as flash kernels have it
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.train().set_attn_implementation(name)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    compile_blocks(blocks_of(models[1]))
    for rows in MICRO_BATCHES:
        positions_BS = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
        batch = {"input_ids": positions_BS, "position_ids": positions_BS, **document_bounds(positions_BS)}
        states = [last_hidden(model, batch) for model in models]
        for state in states:
            state.square().sum().backward()
        torch.testing.assert_close(*states, rtol=2e-2, atol=2e-2)
    for eager, compiled in zip(*(model.parameters() for model in models), strict=True):
        if eager.grad is not None:
            assert float((eager.grad - compiled.grad).norm()) <= 0.02 * float(eager.grad.norm())
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]
