"""Exact stand-ins for what the loss runs on CUDA alone: its kernel, and products that are given out in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses.chunked_cross_entropy import IGNORE_INDEX
from pretrain.losses.fused_loss import token_losses

aten = torch.ops.aten


def exact_losses(
    logits_CV: Tensor,
    teacher_CV: Tensor | None,
    labels_C: Tensor,
    weights_C: Tensor | None,
    weight_gt: float,
    weight_kd: float,
    temperature: float,
    reverse: bool,
    z_loss: float,
    softcap: float,
    teacher_softcap: float,
) -> tuple[Tensor, Tensor]:
    """What `token_losses` computes of the same arguments, in float64.

    Returns:
        losses_RC: cross-entropy, hits and, with a teacher, divergence; what a z-loss adds.
        gradient_CV: d objective / d logits, in closed form: below a tensor's dispatch there is no autograd.
    """
    logits_CV, slope_CV = _capped(logits_CV, softcap)
    valid_C = (labels_C != IGNORE_INDEX).double()
    cross_C = F.cross_entropy(logits_CV, labels_C, ignore_index=IGNORE_INDEX, reduction="none")
    losses = [cross_C, (logits_CV.argmax(1) == labels_C).double()]
    scale_C = weight_gt * valid_C * (1.0 if weights_C is None else weights_C.double())
    onehot_CV = F.one_hot(labels_C.clamp_min(0), logits_CV.shape[1])
    gradient_CV = scale_C[:, None] * (logits_CV.softmax(1) - onehot_CV)
    if teacher_CV is not None:
        teacher_CV, _ = _capped(teacher_CV, teacher_softcap)
        student, taught = (F.log_softmax(x / temperature, 1) for x in (logits_CV, teacher_CV))
        first, second = (taught, student) if reverse else (student, taught)
        kl_C = F.kl_div(first, second, log_target=True, reduction="none").sum(1)
        apart = student.exp() * (student - taught - kl_C[:, None]) if reverse else student.exp() - taught.exp()
        losses.append(temperature**2 * kl_C * valid_C)
        gradient_CV = gradient_CV + weight_kd * temperature * valid_C[:, None] * apart
    if z_loss:
        lse_C = logits_CV.logsumexp(1)
        losses.append(scale_C * z_loss * lse_C.square())
        gradient_CV = gradient_CV + (2 * z_loss * scale_C * lse_C)[:, None] * logits_CV.softmax(1)
    return torch.stack(losses), gradient_CV * slope_CV


def _capped(logits_CV: Tensor, cap: float) -> tuple[Tensor, Tensor | float]:
    """Capped logits and their derivative in float64."""
    if not cap:
        return logits_CV.double(), 1.0
    tanh_CV = (logits_CV.double() / cap).tanh()
    return cap * tanh_CV, 1 - tanh_CV.square()


def _token_losses(logits_CV: Tensor, *arguments: Any) -> Tensor:
    *settings, with_gradient = arguments
    losses_RC, gradient_CV = exact_losses(logits_CV, *settings)
    if with_gradient:
        logits_CV.copy_(gradient_CV)
    return losses_RC.float()


def wide_product(left: Tensor, right: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """`torch.mm(left, right, out_dtype=)`, which a CPU does not have."""
    product = left.to(out_dtype) @ right.to(out_dtype)
    return product if out is None else out.copy_(product)


STAND_INS = {
    token_losses._opoverload: _token_losses,
    aten.mm.dtype: wide_product,
    aten.mm.dtype_out: wide_product,
}
"""By operator of CUDA: a function of tensors on the host."""
