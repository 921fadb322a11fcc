"""Attention over packed rows without a mask of S x S numbers: what to pass a model, and three kernels of torch for it.

    rows        a a a b b | c d d d d          documents lie end to end and never see each other
    varlen      0 3 5 6 10, at most 4          begins and the longest length: flash-attn, torch's own kernel
    flex        # . .    # = some, O = all     which blocks of 128 x 128 a block of queries reads, and a rule that
                # # .                          tells the pairs inside of a block that is read in part
                . O #
    cpu         0 3 5 6 10                     begins: a call of the kernel for each (document_attention.py)
    sdpa        [B, 1, S, S]                   a dense mask, if a row holds several documents; otherwise none

`packed_arguments` gives what `PanguPiModel` is called with, so that neither the model nor transformers has to look at
positions, which would wait for the device. `register_packed_attention` makes three implementations known to
transformers besides its own. They are for training: without documents (generation, padded batches) all are sdpa. Their
names never leave with a model, because transformers does not write `_attn_implementation`. It also puts a shorter way
to the kernel under the names of flash-attn: transformers' own hands on the number of the layer, and so `torch.compile`
would make a graph for every layer, until it gives up.

Shapes: B batch, H heads, G heads of keys and values, S sequence, D width of a head, N documents, T = B * S tokens,
Q = K = S / 128 blocks, rounded up.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_flash_attention_utils import _flash_attention_forward

from arch.pangu_pi.document_attention import document_attention

TORCH_VARLEN = "torch_varlen"
"""`torch.nn.attention.varlen`, where this torch has it."""
PACKED_FLEX = "packed_flex"
"""transformers' flex attention where there is a block mask, sdpa elsewhere (flex compiles for every new length)."""
PACKED_CPU = "packed_cpu"
"""torch's flash kernel for CPUs, document by document."""
FLASH = ("flash_attention_2", "flash_attention_3")
"""transformers' names for the package flash-attn."""
BLOCK = 128
"""Queries, and keys, of a block of flex attention: torch's default."""

Forward = Callable[..., tuple[Tensor, Tensor | None]]


def packed_arguments(
    implementation: str, position_BS: Tensor, cu_seq_lens: Tensor, longest_document: int
) -> dict[str, Any]:
    """What a model gets besides ids and positions, so that its attention keeps the documents of packed rows apart.

    Args:
        implementation: the model's `config._attn_implementation`.
        position_BS: positions, which restart at every document, int64 [B, S].
        cu_seq_lens: begins of the documents in the rows laid end to end, and the end, int32 [N + 1].
        longest_document: tokens of the longest one.

    Returns:
        Nothing where transformers has to make a dense mask of the positions: eager, and sdpa with several documents in
        a row.
    """
    if implementation == PACKED_CPU:
        torch._dynamo.maybe_mark_dynamic(cu_seq_lens, 0)  # or the second number of documents would be a second graph
        return {"cu_seq_lens_q": cu_seq_lens} | _without_mask(position_BS)
    if "flash" in implementation or implementation == TORCH_VARLEN:
        bounds = {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens}
        return (
            bounds | {"max_length_q": longest_document, "max_length_k": longest_document} | _without_mask(position_BS)
        )
    if implementation in (PACKED_FLEX, "flex_attention"):
        return {"attention_mask": packed_block_mask(cu_seq_lens, *position_BS.shape)}
    if implementation == "sdpa" and len(cu_seq_lens) - 1 == len(position_BS):
        return _without_mask(position_BS)
    return {}


def _without_mask(like: Tensor) -> dict[str, Tensor]:
    """An empty mask of four dimensions: transformers hands it on as it is, and `PanguPiDecoderLayer` drops it."""
    return {"attention_mask": torch.empty(0, 0, 0, 0, device=like.device)}


def packed_block_mask(cu_seq_lens: Tensor, rows: int, length: int) -> BlockMask:
    """The causal block mask of packed rows, from where documents begin; no tensor of S x S is made, nothing waited for.

    A query q reads the keys from the begin of its document to q, so a block of queries reads whole blocks of keys from
    the begin of the document that its last query is in, and in part those from the begin of its first query's document.
    """
    device, begin_N = cu_seq_lens.device, cu_seq_lens[:-1].long()
    begin_T = torch.zeros(rows * length, dtype=torch.long, device=device).scatter_(0, begin_N, begin_N).cummax(0).values
    begin_BS = begin_T.view(rows, length) - torch.arange(rows, device=device)[:, None] * length
    block_Q = torch.arange(-(-length // BLOCK), device=device)
    last_Q = (block_Q * BLOCK + BLOCK - 1).clamp(max=length - 1)
    lowest_BQ1, highest_BQ1 = begin_BS[:, ::BLOCK, None], begin_BS[:, last_Q, None]
    earlier_QK = block_Q[None, :] < block_Q[:, None]
    whole_BQK = earlier_QK & (block_Q * BLOCK >= highest_BQ1)
    part_BQK = (block_Q[None, :] <= block_Q[:, None]) & (block_Q >= lowest_BQ1 // BLOCK) & ~whole_BQK

    def reads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= begin_BS[batch, query])

    return BlockMask.from_kv_blocks(
        *_ordered(part_BQK), *_ordered(whole_BQK), BLOCK_SIZE=BLOCK, mask_mod=reads, seq_lengths=(length, length)
    )


def _ordered(chosen_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks a row of blocks reads, int32 [B, 1, Q], and their numbers, those first, int32 [B, 1, Q, K]."""
    numbers_BQK = (~chosen_BQK).to(torch.uint8).argsort(dim=-1, stable=True)
    return chosen_BQK.sum(dim=-1, dtype=torch.int32)[:, None], numbers_BQK.to(torch.int32)[:, None].contiguous()


def has_torch_varlen() -> bool:
    """Whether this torch has attention of variable length."""
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def register_packed_attention() -> None:
    """Makes TORCH_VARLEN, where this torch has it, PACKED_FLEX, PACKED_CPU and the shorter way to FLASH known."""
    for name in FLASH:
        AttentionInterface.register(name, _flash_forward)
    forwards: dict[str, Forward] = {PACKED_FLEX: _flex_forward, PACKED_CPU: _packed(PACKED_CPU, _on_cpu)}
    if has_torch_varlen():
        forwards[TORCH_VARLEN] = _packed(TORCH_VARLEN, _varlen())
    for name, forward in forwards.items():
        AttentionInterface.register(name, forward)
        AttentionMaskInterface.register(name, sdpa_mask)


def _flash_forward(
    module: nn.Module,
    query_BHSD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' flash attention; with documents, straight to its kernel of variable length."""
    if options.get("cu_seq_lens_q") is None:
        return flash_attention_forward(
            module, query_BHSD, key_BGSD, value_BGSD, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    output_BSHD = _flash_attention_forward(
        *(states.transpose(1, 2) for states in (query_BHSD, key_BGSD, value_BGSD)),
        attention_mask=None,
        query_length=query_BHSD.shape[2],
        is_causal=True,
        dropout=dropout,
        softmax_scale=scaling,
        attn_implementation=module.config._attn_implementation,  # type: ignore[union-attr]
        **options,
    )
    return output_BSHD, None


def _flex_forward(
    module: nn.Module, query_BHSD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    forward = flex_attention_forward if isinstance(attention_mask, BlockMask) else sdpa_attention_forward
    return forward(module, query_BHSD, key_BGSD, value_BGSD, attention_mask, **options)


def _packed(name: str, kernel: Callable[..., Tensor]) -> Forward:
    """A kernel in the form of transformers' interface; without documents sdpa takes its place.

    Args:
        name: of the implementation, for errors.
        kernel: queries [B, H, S, D], keys and values [B, G, S, D], begins of documents [N + 1], scale and what else
            transformers hands on -> the output [T, H, D].
    """

    def forward(
        module: nn.Module,
        query_BHSD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if cu_seq_lens_q is None:
            return sdpa_attention_forward(
                module, query_BHSD, key_BGSD, value_BGSD, attention_mask, dropout=dropout, scaling=scaling, **options
            )
        if dropout:
            raise ValueError(f"{name} has no dropout; the model's attention_dropout is {dropout}")
        batch, heads, length, width = query_BHSD.shape
        scale = width**-0.5 if scaling is None else scaling
        output_THD = kernel(query_BHSD, key_BGSD, value_BGSD, cu_seq_lens_q, scale, **options)
        return output_THD.view(batch, length, heads, width), None

    return forward


def _end_to_end(*states_BHSD: Tensor) -> Iterator[Tensor]:
    """The tokens of all rows one after the other, [T, H, D] each."""
    return (x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in states_BHSD)


def _on_cpu(
    query_BHSD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, cu_seq_lens: Tensor, scale: float, **_: Any
) -> Tensor:
    groups = query_BHSD.shape[1] // key_BGSD.shape[1]
    states = _end_to_end(query_BHSD, repeat_kv(key_BGSD, groups), repeat_kv(value_BGSD, groups))
    return document_attention(*states, cu_seq_lens, scale)[0]


def _varlen() -> Callable[..., Tensor]:
    """torch's own kernel. Its options have changed with torch's versions."""
    from torch.nn.attention import varlen

    known = inspect.signature(varlen.varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    grouped, scaled = "enable_gqa" in known, "scale" in known

    def kernel(
        query_BHSD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        cu_seq_lens: Tensor,
        scale: float,
        max_length_q: int | None = None,
        **_: Any,
    ) -> Tensor:
        groups = query_BHSD.shape[1] // key_BGSD.shape[1]
        if groups > 1 and not grouped:
            key_BGSD, value_BGSD = (x.repeat_interleave(groups, dim=1) for x in (key_BGSD, value_BGSD))
        own: dict[str, Any] = {"enable_gqa": True} if groups > 1 and grouped else {}
        if scaled:
            own["scale"] = scale
        else:
            query_BHSD = query_BHSD * (scale * query_BHSD.shape[3] ** 0.5)
        states = _end_to_end(query_BHSD, key_BGSD, value_BGSD)
        return varlen.varlen_attn(*states, cu_seq_lens, cu_seq_lens, max_length_q, max_length_q, **causal, **own)

    return kernel


__all__ = [
    "PACKED_CPU",
    "PACKED_FLEX",
    "TORCH_VARLEN",
    "has_torch_varlen",
    "packed_arguments",
    "packed_block_mask",
    "register_packed_attention",
]
