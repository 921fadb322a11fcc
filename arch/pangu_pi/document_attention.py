"""Causal attention of packed rows on a CPU: torch's flash kernel, for one document after the other.

    rows            a a a b b | c d d d d        documents lie end to end and never see each other
    a dense mask    25 + 25 pairs                every query meets every key of its row, most of them for nothing
    here            6 + 3 + 1 + 10 pairs         each document is a causal problem of its own

The kernel leaves out blocks of keys that lie behind all queries of a block, but with a mask it leaves out nothing. A
call costs some ten microseconds beside its arithmetic, so neighbours that are short go together, with a small mask.

It is an operator of torch: closed to `torch.compile`, whose graphs do not depend on how many documents there are, and
known in shape to fake and meta tensors. The documents' bounds are read as numbers, for which an accelerator would have
to be waited for.

Shapes: T tokens of all rows laid end to end, H heads, D width of a head, N documents, L tokens of a segment.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

WINDOW = 64
"""Neighbouring documents of no more than so many tokens together are one call of the kernel. A call both ways costs as
much as two million multiply-adds, a window of that length with two heads of 64 less than four."""


class Segment(NamedTuple):
    """Tokens that go through the kernel at once."""

    begin: int
    end: int
    mask_LL: Tensor | None
    """0 where a query reads a key, -inf elsewhere; None if it is one document."""

    def of(self, tensor_THD: Tensor) -> Tensor:
        """A view of the segment's tokens as the kernel takes them, [1, H, L, D]."""
        return tensor_THD[self.begin : self.end].transpose(0, 1)[None]


def segments(cu_seq_lens: Tensor, dtype: torch.dtype) -> list[Segment]:
    """The calls of the kernel for documents with these bounds.

    Args:
        cu_seq_lens: begins of the documents and the end, ascending, integers [N + 1] on a CPU.
        dtype: of the masks.
    """
    found: list[Segment] = []
    begin, *ends = cu_seq_lens.tolist()
    inner: list[int] = []
    for end, following in zip(ends, [*ends[1:], None], strict=True):
        if following is not None and following - begin <= WINDOW:
            inner.append(end - begin)
            continue
        found.append(Segment(begin, end, _mask(end - begin, inner, dtype) if inner else None))
        begin, inner = end, []
    return found


def _mask(length: int, inner: list[int], dtype: torch.dtype) -> Tensor:
    """Causal within the documents that begin at 0 and at `inner`."""
    mask_LL = torch.full((length, length), -torch.inf, dtype=dtype, device="cpu").triu_(1)
    for begin in inner:
        mask_LL[begin:, :begin] = -torch.inf
    return mask_LL


@torch.library.custom_op("tinypi::document_attention", mutates_args=())
def document_attention(
    query_THD: Tensor, key_THD: Tensor, value_THD: Tensor, cu_seq_lens: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention within each document.

    Args:
        query_THD: queries.
        key_THD: keys, with as many heads as the queries.
        value_THD: values, likewise.
        cu_seq_lens: begins of the documents, and T; integers [N + 1].
        scale: of the products of queries and keys.

    Returns:
        The output [T, H, D], and the logarithm of every query's sum of exponentials [T, H], in at least float32.
    """
    output_THD = query_THD.new_empty(query_THD.shape)
    lse_TH = query_THD.new_empty(query_THD.shape[:2], dtype=_statistics_type(query_THD))
    for segment in segments(cu_seq_lens, query_THD.dtype):
        states = [segment.of(tensor) for tensor in (query_THD, key_THD, value_THD)]
        output_1HLD, lse_1HL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *states, 0.0, segment.mask_LL is None, attn_mask=segment.mask_LL, scale=scale
        )
        segment.of(output_THD).copy_(output_1HLD)
        lse_TH[segment.begin : segment.end].copy_(lse_1HL[0].T)
    return output_THD, lse_TH


@document_attention.register_fake
def _(query_THD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_TH = query_THD.new_empty(query_THD.shape[:2], dtype=_statistics_type(query_THD))
    return query_THD.new_empty(query_THD.shape), lse_TH


@torch.library.custom_op("tinypi::document_attention_backward", mutates_args=())
def document_attention_backward(
    gradient_THD: Tensor,
    query_THD: Tensor,
    key_THD: Tensor,
    value_THD: Tensor,
    output_THD: Tensor,
    lse_TH: Tensor,
    cu_seq_lens: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [T, H, D] of queries, keys and values, from that of the output and from what forward returned."""
    given = (gradient_THD.contiguous(), query_THD, key_THD, value_THD, output_THD)
    results = [tensor.new_empty(tensor.shape) for tensor in (query_THD, key_THD, value_THD)]
    for segment in segments(cu_seq_lens, query_THD.dtype):
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(segment.of(tensor) for tensor in given),
            lse_TH[segment.begin : segment.end].T[None],
            0.0,
            segment.mask_LL is None,
            attn_mask=segment.mask_LL,
            scale=scale,
        )
        for result_THD, gradient_1HLD in zip(results, gradients, strict=True):
            segment.of(result_THD).copy_(gradient_1HLD)
    query, key, value = results
    return query, key, value


@document_attention_backward.register_fake
def _(gradient_THD: Tensor, *states: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (tensor.new_empty(tensor.shape) for tensor in states[:3])
    return query, key, value


def _statistics_type(query_THD: Tensor) -> torch.dtype:
    return torch.promote_types(query_THD.dtype, torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query_THD, key_THD, value_THD, cu_seq_lens, ctx.scale = inputs
    ctx.save_for_backward(query_THD, key_THD, value_THD, *output, cu_seq_lens)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, gradient_THD: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *document_attention_backward(gradient_THD, *ctx.saved_tensors, ctx.scale), None, None


document_attention.register_autograd(_gradients, setup_context=_keep)


__all__ = ["document_attention", "segments"]
