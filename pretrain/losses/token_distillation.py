"""Distillation on the logits of a frozen teacher: token by token, on the data (docs/methods/delvm.md: distillation).

    L    = weight_gt * L_gt + weight_kd * L_kd
    L_gt = -log p_S(label)
    L_kd = tau^2 * sum_v p_T (log p_T - log p_S),   p = softmax(logits / tau)      forward KL
    d L_kd / d l_S = tau * (p_S - p_T)

Both losses are taken at the same positions: those that have a label (the release averages L_kd over all).
With `reverse` the divergence is KL(p_S || p_T), its gradient through both factors:

    d L_kd / d l_S = tau * p_S * (log p_S - log p_T - KL)

Neither model's logits ever exist for a whole batch: teacher and student are multiplied with their heads chunk by chunk,
and the gradient is formed there (`pretrain/losses/chunked_cross_entropy.py`).

Shapes: B batch, S sequence, N = B*S, E width of the teacher, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.errors import ConfigurationError
from pretrain.losses.chunked_cross_entropy import (
    ChunkLoss,
    CrossEntropy,
    accumulation_dtype,
    soft_capped,
    through_soft_cap,
)
from pretrain.losses.fused_loss import token_losses
from pretrain.losses.head_products import head_logits
from pretrain.losses.loss_layout import LossLayout


@dataclass(frozen=True)
class DistillationConfig:
    """What a teacher contributes to the loss."""

    weight_gt: float = 1.0
    """Weight of the cross-entropy against the data."""
    weight_kd: float = 1.0
    """Weight of the divergence from the teacher."""
    temperature: float = 1.0
    """tau: both models' logits are divided by it, and the divergence is multiplied by its square."""
    reverse: bool = False
    """KL(student || teacher) instead of KL(teacher || student)."""

    def __post_init__(self) -> None:
        for name in ("weight_gt", "weight_kd"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"distillation.{name} is {getattr(self, name)}; it must be at least 0")
        if not self.weight_gt + self.weight_kd > 0:
            raise ConfigurationError("distillation: weight_gt and weight_kd are both 0; nothing would be learned")
        if not self.temperature > 0:
            raise ConfigurationError(f"distillation.temperature is {self.temperature}; it must be greater than 0")


def divergence(
    logits_CV: Tensor, teacher_logits_CV: Tensor, temperature: float = 1.0, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The divergence of every token and its gradient, in at least float32.

    Args:
        logits_CV: the student's.
        teacher_logits_CV: the teacher's.
        temperature: tau.
        reverse: KL(student || teacher).

    Returns:
        losses_C: tau^2 * KL in nats; exactly 0 for equal logits.
        gradient_CV: d losses_C / d logits_CV.
    """
    dtype = accumulation_dtype(logits_CV)
    log_s_CV = F.log_softmax(logits_CV.to(dtype) / temperature, dim=-1)
    log_t_CV = F.log_softmax(teacher_logits_CV.to(dtype) / temperature, dim=-1)
    if reverse:
        student_CV, ratio_CV = log_s_CV.exp(), log_s_CV - log_t_CV
        kl_C = (student_CV * ratio_CV).sum(dim=-1)
        gradient_CV = student_CV * (ratio_CV - kl_C.unsqueeze(-1))
    else:
        teacher_CV = log_t_CV.exp()
        kl_C = (teacher_CV * (log_t_CV - log_s_CV)).sum(dim=-1)
        gradient_CV = log_s_CV.exp() - teacher_CV
    return temperature**2 * kl_C, temperature * gradient_CV


@dataclass(frozen=True)
class Distillation:
    """A criterion: the weighted sum of cross-entropy and divergence, at the positions that have a label.

    Args:
        cross_entropy: against the data, weighed with its z-loss.
        teacher_hidden_BSE: the teacher's last hidden states, [B, S, E].
        teacher_weight_VE: the teacher's head, [V, E].
        config: weights, temperature, direction.
        teacher_softcap: the teacher's `final_logit_softcapping`.
    """

    cross_entropy: CrossEntropy
    teacher_hidden_BSE: Tensor
    teacher_weight_VE: Tensor
    config: DistillationConfig
    teacher_softcap: float | None = None

    @property
    def labels_BS(self) -> Tensor:
        return self.cross_entropy.labels_BS

    @property
    def reports(self) -> tuple[str, ...]:
        return (*self.cross_entropy.reports, "divergence")

    def __call__(self, logits_CV: Tensor, chunk: slice, with_gradient: bool, layout: LossLayout) -> ChunkLoss:
        config, truth = self.config, self.cross_entropy
        teacher_CE = self.teacher_hidden_BSE.view(-1, self.teacher_hidden_BSE.shape[-1])[chunk]
        teacher_CV = head_logits(teacher_CE, self.teacher_weight_VE, layout)
        if layout.fused:
            return self._fused(logits_CV, teacher_CV, chunk, with_gradient)
        capped_CV = soft_capped(logits_CV, truth.softcap)
        teacher_CV = soft_capped(teacher_CV, self.teacher_softcap)
        against_data = truth.of_capped(capped_CV, chunk, with_gradient)
        losses_C, gradient_CV = divergence(capped_CV, teacher_CV, config.temperature, config.reverse)
        valid_C = truth.valid(chunk).to(losses_C.dtype)
        losses_C = losses_C * valid_C
        objective_C = config.weight_gt * against_data.objective_C + config.weight_kd * losses_C
        of_data_RC = against_data.reports_RC
        if truth.z_loss:  # the last, which says what it adds to the objective
            of_data_RC[-1] *= config.weight_gt
        reports_RC = torch.cat([of_data_RC, losses_C.unsqueeze(0)])
        if against_data.gradient_CV is None:
            return ChunkLoss(objective_C, reports_RC, None)
        gradient_CV.mul_(config.weight_kd * valid_C.unsqueeze(1))
        gradient_CV.add_(against_data.gradient_CV, alpha=config.weight_gt)
        return ChunkLoss(objective_C, reports_RC, through_soft_cap(gradient_CV, capped_CV, truth.softcap))

    def _fused(self, logits_CV: Tensor, teacher_CV: Tensor, chunk: slice, with_gradient: bool) -> ChunkLoss:
        config, truth = self.config, self.cross_entropy
        labels_C, weights_C = truth.labels(chunk), truth.weights(chunk)
        settings = config.weight_gt, config.weight_kd, config.temperature, config.reverse, truth.z_loss
        caps = truth.softcap or 0.0, self.teacher_softcap or 0.0
        rows_RC = token_losses(logits_CV, teacher_CV, labels_C, weights_C, *settings, *caps, with_gradient)
        against_data_C = rows_RC[0] if weights_C is None else rows_RC[0] * weights_C
        objective_C = config.weight_gt * against_data_C + config.weight_kd * rows_RC[2]
        if truth.z_loss:
            objective_C = objective_C + rows_RC[-1]
        reports_RC = torch.cat([truth.reported(rows_RC), rows_RC[2:3]])
        return ChunkLoss(objective_C, reports_RC, logits_CV if with_gradient else None)
