"""Linear head and cross-entropy in chunks, so that the logits of a whole batch never exist.

What it costs: with N tokens, width D and vocabulary V the usual loss keeps N x V logits and as many gradients. Here one
chunk of `chunk_elements` logits exists at a time. Its gradient is formed right away, in the forward pass, while the
chunk is still warm: the head is multiplied three times (logits, d hidden, d weight) exactly as in the plain loss, and
nothing is recomputed in backward. That works because the gradient of a *weighted sum* of token losses is known up to
one scalar before backward starts; whoever needs other weights per token gives them in `token_weights`.

Shapes: B batch, S sequence, N = B*S, D width, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
"""Label of a position that has no target (padding, or the first token of another document)."""


def chunk_length(vocabulary: int, chunk_elements: int) -> int:
    """Tokens per chunk such that a chunk holds at most `chunk_elements` logits (at least one token)."""
    return max(1, chunk_elements // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    """sum_t w_t * CE(hidden_t @ weight^T, label_t), with both gradients formed in forward."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, labels_N, token_weights_N, chunk_elements):
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        losses_N = hidden_ND.new_zeros(hidden_ND.shape[0], dtype=_accumulation_dtype(hidden_ND))
        grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=losses_N.dtype) if needs_weight else None
        step = chunk_length(weight_VD.shape[0], chunk_elements)
        for start in range(0, hidden_ND.shape[0], step):
            chunk = slice(start, start + step)
            hidden_CD = hidden_ND[chunk]
            valid_C = labels_N[chunk] != IGNORE_INDEX
            targets_C1 = labels_N[chunk].where(valid_C, 0).unsqueeze(1)
            log_probabilities_CV = F.log_softmax(hidden_CD @ weight_VD.T, dim=-1, dtype=losses_N.dtype)
            losses_N[chunk] = -log_probabilities_CV.gather(1, targets_C1).squeeze(1) * valid_C
            if not (needs_hidden or needs_weight):
                continue
            scale_C1 = valid_C.to(losses_N.dtype).unsqueeze(1)
            if token_weights_N is not None:
                scale_C1 = scale_C1 * token_weights_N[chunk].unsqueeze(1)
            # d CE / d logits = softmax - onehot, written over the log-probabilities.
            grad_CV = log_probabilities_CV.exp_()
            grad_CV.scatter_add_(1, targets_C1, torch.full_like(scale_C1, -1.0))
            grad_CV = grad_CV.mul_(scale_C1).to(hidden_CD.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[chunk])
            if grad_weight_VD is not None:
                if grad_weight_VD.dtype == grad_CV.dtype:
                    grad_weight_VD.addmm_(grad_CV.T, hidden_CD)
                else:
                    grad_weight_VD += grad_CV.T @ hidden_CD
        total = losses_N.sum() if token_weights_N is None else (losses_N * token_weights_N).sum()
        # Not save_for_backward: backward hands these very tensors over, and a second reference would force a copy.
        ctx.gradients = (grad_hidden_ND, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(losses_N)
        return total, losses_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total, _grad_losses):
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: its gradients are used up; run it again before a second backward")
        grad_hidden_ND, grad_weight_VD = ctx.gradients
        ctx.gradients = None
        if grad_hidden_ND is not None:
            grad_hidden_ND.mul_(grad_total)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.mul_(grad_total).to(ctx.weight_dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Losses are kept in at least float32 (float64 stays, for gradient checks)."""
    return torch.promote_types(tensor.dtype, torch.float32)


def linear_cross_entropy(
    hidden_BSD: Tensor,
    weight_VD: Tensor,
    labels_BS: Tensor,
    token_weights_BS: Tensor | None = None,
    chunk_elements: int = 2**22,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a linear head against `labels`, summed, without materialising the logits.

    Args:
        hidden_BSD: last hidden states, [B, S, D].
        weight_VD: head weight, [V, D], no bias.
        labels_BS: targets *already shifted* (labels[t] is the token after t), int64 [B, S]; `IGNORE_INDEX` has no loss.
        token_weights_BS: optional weight of each token in the sum, [B, S]; not differentiated.
        chunk_elements: logits that exist at one time (4 Mi elements are 16 MiB in float32).

    Returns:
        total: scalar, sum over tokens of weight * loss in nats; differentiable, once, in `hidden_BSD` and `weight_VD`.
        losses_BS: unweighted loss of every token in nats, 0 where ignored; not differentiable.

    Raises:
        ValueError: shapes that do not fit.
    """
    if hidden_BSD.shape[:-1] != labels_BS.shape or hidden_BSD.shape[-1] != weight_VD.shape[-1]:
        raise ValueError(
            f"linear_cross_entropy: hidden {tuple(hidden_BSD.shape)}, head {tuple(weight_VD.shape)} and labels "
            f"{tuple(labels_BS.shape)} do not fit; expected [B, S, D], [V, D] and [B, S]"
        )
    if not torch.is_grad_enabled():
        # A frozen model. needs_input_grad looks at the tensors alone, and gradients would be formed for nothing.
        hidden_BSD, weight_VD = hidden_BSD.detach(), weight_VD.detach()
    total, losses_N = _LinearCrossEntropy.apply(
        hidden_BSD.reshape(-1, hidden_BSD.shape[-1]),
        weight_VD,
        labels_BS.reshape(-1),
        None if token_weights_BS is None else token_weights_BS.reshape(-1),
        chunk_elements,
    )
    return total, losses_N.view(labels_BS.shape)
