"""Linear head and cross-entropy in chunks, so that the logits of a whole batch never exist.

What it costs: with N tokens, width D and vocabulary V the usual loss keeps N x V logits and as many gradients. Here
one chunk of logits exists at a time, as large as suits the device (`pretrain/losses/loss_layout.py`). Its gradient is
formed right away, in the forward pass, while the chunk is still warm: the head is multiplied three times (logits, d
hidden, d weight; `pretrain/losses/head_products.py`) exactly as in the plain loss, and nothing is recomputed in
backward. That works because the gradient of a *weighted sum* of token losses is known up to one scalar before backward
starts; whoever needs other weights per token gives them in `token_weights`.

What is computed of a chunk's logits is a `Criterion`: `CrossEntropy` here, with a teacher
`pretrain/losses/token_distillation.py`. On CUDA all of it is one kernel that works in place
(`pretrain/losses/fused_loss.py`); the eager form is its reference. No number is read back from the device.

Precision, logits in bf16: maxima, sums and losses are float32, the gradient of the logits is rounded to bf16 once, for
the products, and d weight is summed over chunks in float32 and rounded once at the end.

Shapes: B batch, S sequence, N = B*S, D width, V vocabulary, C tokens of one chunk, R numbers reported of each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses.fused_loss import token_losses
from pretrain.losses.head_products import add_weight_gradient, head_logits, hidden_gradient, logits_space
from pretrain.losses.loss_layout import LossLayout, layout_on

IGNORE_INDEX = -100
"""Label of a position that has no target (padding, or the first token of another document)."""


class ChunkLoss(NamedTuple):
    """What a criterion makes of the logits of one chunk."""

    objective_C: Tensor
    """The loss of every token as it enters the sum."""
    reports_RC: Tensor
    """What is reported of every token, in the order of the criterion's `reports`."""
    gradient_CV: Tensor | None
    """d (sum of the objective) / d logits, perhaps written over these; None if it was not asked for."""


class Criterion(Protocol):
    """A token-wise loss of logits, with its gradient in closed form."""

    @property
    def labels_BS(self) -> Tensor:
        """Targets, int64 [B, S]; `IGNORE_INDEX` has no loss."""

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of the numbers that it reports of every token."""

    def __call__(self, logits_CV: Tensor, chunk: slice, with_gradient: bool, layout: LossLayout) -> ChunkLoss:
        """The loss of the tokens in `chunk` of the flattened batch; `layout` is how their logits lie in memory."""


@dataclass(frozen=True)
class CrossEntropy:
    """-log p(label) of every token that has a label, perhaps with a z-loss besides.

        objective = weight * (lse - l_label + z_loss * lse^2),   lse = log sum_v exp l_v
        d objective / d l = weight * ((1 + 2 z_loss lse) softmax(l) - onehot)

    The z-loss (PaLM, arXiv 2204.02311, section 5) keeps log Z near 0; the loss that is reported is without it. With a
    soft cap all of this is of the capped logits, and what comes in are those of the head (`soft_capped`).

    Args:
        labels_BS: targets *already shifted* (labels[t] is the token after t), int64; `IGNORE_INDEX` has no loss.
        token_weights_BS: optional weight of each token in the sum; not differentiated.
        accuracy: also report whether the label is the most likely token (one more pass over the logits).
        z_loss: coefficient of the z-loss; where it is not 0, what that adds to the objective is reported as `z_loss`.
        softcap: the model's `final_logit_softcapping`.
    """

    labels_BS: Tensor
    token_weights_BS: Tensor | None = None
    accuracy: bool = False
    z_loss: float = 0.0
    softcap: float | None = None

    @property
    def reports(self) -> tuple[str, ...]:
        return ("loss", *["correct"] * self.accuracy, *["z_loss"] * bool(self.z_loss))

    def valid(self, chunk: slice) -> Tensor:
        """Which tokens of the chunk have a label, bool [C]."""
        return self.labels(chunk) != IGNORE_INDEX

    def labels(self, chunk: slice) -> Tensor:
        """The chunk's labels, int64 [C]."""
        return self.labels_BS.reshape(-1)[chunk]

    def weights(self, chunk: slice) -> Tensor | None:
        """The chunk's token weights, [C]."""
        return None if self.token_weights_BS is None else self.token_weights_BS.reshape(-1)[chunk]

    def reported(self, rows_RC: Tensor) -> Tensor:
        """Its `reports` among the rows of `token_losses`."""
        number = len(self.reports) - bool(self.z_loss)
        return torch.cat([rows_RC[:number], rows_RC[-1:]]) if self.z_loss else rows_RC[:number]

    def __call__(self, logits_CV: Tensor, chunk: slice, with_gradient: bool, layout: LossLayout) -> ChunkLoss:
        if layout.fused:
            labels_C, weights_C = self.labels(chunk), self.weights(chunk)
            settings = 1.0, 0.0, 1.0, False, self.z_loss, self.softcap or 0.0, 0.0  # no teacher
            rows_RC = token_losses(logits_CV, None, labels_C, weights_C, *settings, with_gradient)
            objective_C = rows_RC[0] if weights_C is None else rows_RC[0] * weights_C
            if self.z_loss:
                objective_C = objective_C + rows_RC[-1]
            return ChunkLoss(objective_C, self.reported(rows_RC), logits_CV if with_gradient else None)
        if self.softcap is None:
            return self.of_capped(logits_CV, chunk, with_gradient, overwrite=_on_host(logits_CV))
        capped_CV = soft_capped(logits_CV, self.softcap)
        loss = self.of_capped(capped_CV, chunk, with_gradient)
        return loss._replace(gradient_CV=through_soft_cap(loss.gradient_CV, capped_CV, self.softcap))

    def of_capped(self, logits_CV: Tensor, chunk: slice, with_gradient: bool, overwrite: bool = False) -> ChunkLoss:
        """The eager form, of logits that are capped already; the gradient is that of these, perhaps over them."""
        labels_C, valid_C = self.labels(chunk), self.valid(chunk)
        targets_C1 = labels_C.where(valid_C, 0).unsqueeze(1)
        dtype = accumulation_dtype(logits_CV)
        largest_C, at_labels_C = logits_CV.amax(dim=1).to(dtype), logits_CV.gather(1, targets_C1).squeeze(1)
        # One exponential of each logit. The largest probability is never below 1 / V, so its logarithm is exact.
        if overwrite and logits_CV.dtype == dtype:
            probabilities_CV = torch.softmax(logits_CV, dim=-1, out=logits_CV)
        else:
            probabilities_CV = F.softmax(logits_CV, dim=-1, dtype=dtype)
        lse_C = largest_C - probabilities_CV.amax(dim=1).log()
        losses_C = (lse_C - at_labels_C) * valid_C
        reports = [losses_C]
        if self.accuracy:
            reports.append((probabilities_CV.argmax(dim=1) == labels_C).to(losses_C.dtype))
        scale_C = valid_C.to(losses_C.dtype)
        objective_C = losses_C
        if (weights_C := self.weights(chunk)) is not None:
            scale_C, objective_C = scale_C * weights_C, losses_C * weights_C
        if self.z_loss:
            reports.append(self.z_loss * lse_C.square() * scale_C)
            objective_C = objective_C + reports[-1]
        if not with_gradient:
            return ChunkLoss(objective_C, torch.stack(reports), None)
        grad_CV = probabilities_CV  # d CE / d logits = softmax - onehot, written over the probabilities
        if self.z_loss:
            grad_CV.mul_((scale_C * (1 + 2 * self.z_loss * lse_C)).unsqueeze(1))
            grad_CV.scatter_add_(1, targets_C1, -scale_C.unsqueeze(1))
            return ChunkLoss(objective_C, torch.stack(reports), grad_CV)
        grad_CV.scatter_add_(1, targets_C1, torch.full_like(losses_C, -1.0).unsqueeze(1))
        return ChunkLoss(objective_C, torch.stack(reports), grad_CV.mul_(scale_C.unsqueeze(1)))


class _ChunkedHead(torch.autograd.Function):
    """sum_t of a criterion of hidden_t @ weight^T, with both gradients formed in forward."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, criterion, layout):
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        rows, dtype = 1 + len(criterion.reports), accumulation_dtype(hidden_ND)
        tokens_RN = hidden_ND.new_zeros(rows, hidden_ND.shape[0], dtype=dtype)
        chunks = layout.chunks(hidden_ND.shape[0])
        empty = torch.empty_like if chunks else torch.zeros_like  # the first chunk writes over what is there
        grad_hidden_ND = empty(hidden_ND) if needs_hidden else None
        grad_weight_VD = empty(weight_VD, dtype=dtype) if needs_weight else None
        longest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        space_CV = logits_space(hidden_ND, longest, weight_VD.shape[0], layout)
        wide_CV = None
        if _on_host(hidden_ND) and hidden_ND.dtype != dtype:
            wide_CV = torch.empty_like(space_CV, dtype=dtype)
        for chunk in chunks:
            hidden_CD, tokens = hidden_ND[chunk], chunk.stop - chunk.start
            logits_CV = head_logits(hidden_CD, weight_VD, layout, out_CV=space_CV[:tokens])
            given_CV = logits_CV if wide_CV is None else wide_CV[:tokens].copy_(logits_CV)
            loss = criterion(given_CV, chunk, needs_hidden or needs_weight, layout)
            tokens_RN[0, chunk], tokens_RN[1:, chunk] = loss.objective_C, loss.reports_RC
            grad_CV = loss.gradient_CV
            if grad_CV is not None and grad_CV.dtype != logits_CV.dtype:
                grad_CV = logits_CV.copy_(grad_CV)
            del loss
            if grad_hidden_ND is not None:
                hidden_gradient(grad_CV, weight_VD, layout, grad_hidden_ND[chunk])
            if grad_weight_VD is not None:
                add_weight_gradient(grad_CV, hidden_CD, layout, grad_weight_VD, is_first=chunk.start == 0)
            del grad_CV  # or it might live beside that of the next chunk
        # Not save_for_backward: backward hands these very tensors over, and a second reference would force a copy.
        ctx.gradients = (grad_hidden_ND, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(tokens_RN)
        return tokens_RN[0].sum(), tokens_RN

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total, _grad_tokens):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss are used up; run it again before a second backward")
        grad_hidden_ND, grad_weight_VD = ctx.gradients
        ctx.gradients = None
        if grad_hidden_ND is not None:
            grad_hidden_ND.mul_(grad_total)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.mul_(grad_total).to(ctx.weight_dtype)
        return grad_hidden_ND, grad_weight_VD, None, None


def _on_host(tensor: Tensor) -> bool:
    """Whether memory comes from the host's allocator, from which every large block is new and written page by page."""
    return tensor.device.type in ("cpu", "meta")


def soft_capped(logits_CV: Tensor, cap: float | None) -> Tensor:
    """c tanh(logits / c) in at least float32, perhaps written over them; without a cap they themselves.

    Source: Gemma 2, arXiv 2408.00118, section 2.
    """
    return logits_CV if cap is None else logits_CV.to(accumulation_dtype(logits_CV)).div_(cap).tanh_().mul_(cap)


def through_soft_cap(gradient_CV: Tensor | None, capped_CV: Tensor, cap: float | None) -> Tensor | None:
    """d logits from d capped logits, times 1 - tanh^2, in place; the capped logits are used up."""
    if gradient_CV is None or cap is None:
        return gradient_CV
    return gradient_CV.mul_(capped_CV.div_(cap).square_().neg_().add_(1))


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Losses are kept in at least float32 (float64 stays, for gradient checks)."""
    return torch.promote_types(tensor.dtype, torch.float32)


def linear_loss(
    hidden_BSD: Tensor, weight_VD: Tensor, criterion: Criterion, chunk_elements: int | LossLayout | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """A criterion of a linear head's logits, summed, without materialising the logits.

    Args:
        hidden_BSD: last hidden states, [B, S, D].
        weight_VD: head weight, [V, D], no bias.
        criterion: what is computed of the logits of every token.
        chunk_elements: logits that may exist at one time; None takes what suits the device
            (`pretrain/losses/loss_layout.py`), a layout is taken as it is: that of a device for which this pass only
            stands in.

    Returns:
        total: scalar, sum of the objective; differentiable, once, in `hidden_BSD` and `weight_VD`.
        tokens: [B, S] each, not differentiable: `objective`, what each token adds to `total`, and the criterion's
            `reports` by name.

    Raises:
        ValueError: shapes that do not fit.
    """
    if hidden_BSD.shape[:-1] != criterion.labels_BS.shape or hidden_BSD.shape[-1] != weight_VD.shape[-1]:
        raise ValueError(
            f"hidden {tuple(hidden_BSD.shape)}, head {tuple(weight_VD.shape)} and labels "
            f"{tuple(criterion.labels_BS.shape)} do not fit; expected [B, S, D], [V, D] and [B, S]"
        )
    if not torch.is_grad_enabled():
        # A frozen model. needs_input_grad looks at the tensors alone, and gradients would be formed for nothing.
        hidden_BSD, weight_VD = hidden_BSD.detach(), weight_VD.detach()
    layout = chunk_elements
    if not isinstance(layout, LossLayout):
        layout = layout_on(hidden_BSD.device, hidden_BSD.dtype, weight_VD.shape[0], layout)
    total, tokens_RN = _ChunkedHead.apply(hidden_BSD.reshape(-1, hidden_BSD.shape[-1]), weight_VD, criterion, layout)
    names = ("objective", *criterion.reports)
    return total, dict(zip(names, tokens_RN.view(len(names), *hidden_BSD.shape[:-1]), strict=True))


def linear_cross_entropy(
    hidden_BSD: Tensor,
    weight_VD: Tensor,
    labels_BS: Tensor,
    token_weights_BS: Tensor | None = None,
    chunk_elements: int | LossLayout | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a linear head against `labels`, summed, without materialising the logits.

    Args:
        hidden_BSD: last hidden states, [B, S, D].
        weight_VD: head weight, [V, D], no bias.
        labels_BS: targets *already shifted* (labels[t] is the token after t), int64 [B, S]; `IGNORE_INDEX` has no loss.
        token_weights_BS: optional weight of each token in the sum, [B, S]; not differentiated.
        chunk_elements: logits that may exist at one time; None takes what suits the device.

    Returns:
        total: scalar, sum over tokens of weight * loss in nats; differentiable, once, in `hidden_BSD` and `weight_VD`.
        losses_BS: unweighted loss of every token in nats, 0 where ignored; not differentiable.

    Raises:
        ValueError: shapes that do not fit.
    """
    total, tokens = linear_loss(hidden_BSD, weight_VD, CrossEntropy(labels_BS, token_weights_BS), chunk_elements)
    return total, tokens["loss"]
