"""The three products of a linear head with a chunk of tokens: logits, d hidden, d weight.

    logits_CV    = hidden_CD weight_VD^T
    d hidden_CD  = d logits_CV weight_VD
    d weight_VD += d logits_CV^T hidden_CD

A row of logits may be longer in memory than the vocabulary (`LossLayout.row_multiple`), which the head's weight is not.
So each product is done in two parts, the columns whose number is a multiple, whose addresses and sizes tensor cores
like, and the few that remain. Nothing is ever computed of the padding.

Sums of low-precision products stay in float32 where the device can give them out so (`LossLayout.wide`). Elsewhere, in
bf16 on a CPU, each chunk's product is rounded once before it is added in float32. With u = 2^-8, the unit roundoff of
bf16, that adds at most u times the sum over chunks of |product| to the gradient's error.

Shapes: C tokens of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.losses.loss_layout import LossLayout

SLAB_ELEMENTS = 2**23
"""Of a float32 product that is added to the gradient of the weight: 32 MiB, which an accelerator's cache holds."""


def logits_space(like: Tensor, tokens: int, vocabulary: int, layout: LossLayout) -> Tensor:
    """Memory for the logits [C, V] of `tokens` tokens, in rows of the layout's length."""
    return like.new_empty(tokens, layout.row(vocabulary))[:, :vocabulary]


def head_logits(hidden_CD: Tensor, weight_VD: Tensor, layout: LossLayout, out_CV: Tensor | None = None) -> Tensor:
    """Logits [C, V] in the type of the hidden states, in rows of the layout's length; perhaps in `out_CV`."""
    logits_CV = logits_space(hidden_CD, len(hidden_CD), len(weight_VD), layout) if out_CV is None else out_CV
    for part in layout.parts(len(weight_VD)):
        torch.mm(hidden_CD, weight_VD[part].T, out=logits_CV[:, part])
    return logits_CV


def hidden_gradient(grad_CV: Tensor, weight_VD: Tensor, layout: LossLayout, out_CD: Tensor) -> None:
    """Writes d hidden of a chunk, rounded once."""
    first, *rest = layout.parts(weight_VD.shape[0])
    if not rest:
        torch.mm(grad_CV, weight_VD, out=out_CD)
        return
    sum_CD = _product(grad_CV[:, first], weight_VD[first], layout)
    for part in rest:
        sum_CD += _product(grad_CV[:, part], weight_VD[part], layout)
    out_CD.copy_(sum_CD)


def add_weight_gradient(grad_CV: Tensor, hidden_CD: Tensor, layout: LossLayout, sum_VD: Tensor, is_first: bool) -> None:
    """Adds d weight of a chunk to the sum over chunks; the first one is written over whatever `sum_VD` holds.

    Args:
        grad_CV: d logits, in the type of the hidden states.
        hidden_CD: the chunk's hidden states.
        layout: of the logits.
        sum_VD: the sum over chunks, in at least float32.
        is_first: whether nothing has been added yet.
    """
    for part in layout.parts(grad_CV.shape[1]):
        left_VC, target_VD = grad_CV[:, part].T, sum_VD[part]
        if target_VD.dtype == grad_CV.dtype:
            target_VD.addmm_(left_VC, hidden_CD, beta=0 if is_first else 1)
        elif is_first:
            if layout.wide:
                torch.mm(left_VC, hidden_CD, out_dtype=target_VD.dtype, out=target_VD)
            else:
                target_VD.copy_(left_VC @ hidden_CD)
        else:
            lines = max(1, SLAB_ELEMENTS // sum_VD.shape[1] // layout.row_multiple)  # so that slabs begin aligned
            rows = lines * layout.row_multiple if layout.wide else len(target_VD)
            for slab_VC, slab_VD in zip(left_VC.split(rows), target_VD.split(rows), strict=True):
                slab_VD += _product(slab_VC, hidden_CD, layout)


def _product(left: Tensor, right: Tensor, layout: LossLayout) -> Tensor:
    """A matrix product, in float32 where the device gives it out so."""
    wide = layout.wide and left.dtype in (torch.bfloat16, torch.float16)
    return torch.mm(left, right, out_dtype=torch.float32) if wide else torch.mm(left, right)
