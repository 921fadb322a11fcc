"""Everything between the head's products as one operator: `token_losses`, a kernel on CUDA, and no code elsewhere.

    logits_CV, labels_C, perhaps teacher_CV -> losses, hits, perhaps divergences and z-losses of every token
                                            -> d objective / d logits, written over logits_CV

It is an operator of torch, so that fake and meta tensors know its shapes: a plan and the tests run it on a device that
is not there. What it computes is `CrossEntropy` and `Distillation`, whose eager form is its reference. A row of logits
is read twice and written once (6 bytes a logit in bf16, where the eager form moves 48: tests/pretrain/
test_loss_traffic.py counts them).

Shapes: C tokens of one chunk, V vocabulary, R = 2, one more with a teacher and one more with a z-loss.
"""

from contextlib import nullcontext

import torch
from torch import Tensor


@torch.library.custom_op(
    "tinypi::token_losses",
    mutates_args=("logits_CV",),
    schema="(Tensor(a!) logits_CV, Tensor? teacher_CV, Tensor labels_C, Tensor? weights_C, float weight_gt, "
    "float weight_kd, float temperature, bool reverse, float z_loss, float softcap, "
    "float teacher_softcap, bool with_gradient) -> Tensor",
)
def token_losses(
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
    with_gradient: bool,
) -> Tensor:
    """The losses of every token, and the gradient of their weighted sum over the logits.

    Args:
        logits_CV: the student's, in rows whose memory reaches to the next row: what lies between V and the row's length
            is padding and may be overwritten. With `with_gradient` it becomes the gradient.
        teacher_CV: the teacher's logits, in rows like them.
        labels_C: int64; `IGNORE_INDEX` has no loss and no gradient.
        weights_C: weight of each token's cross-entropy in the sum, float32.
        weight_gt: weight of the cross-entropy.
        weight_kd: weight of the divergence.
        temperature: of the divergence.
        reverse: KL(student || teacher) instead of KL(teacher || student).
        z_loss: coefficient of the squared logarithm of the sum of exponentials, which is added to the cross-entropy.
        softcap: c of the student's logits, which become c tanh(logits / c) first; 0 leaves them.
        teacher_softcap: that of the teacher's.
        with_gradient: whether the logits are to become the gradient.

    Returns:
        [R, C] in float32: the cross-entropy, whether the label is the (first) most likely id, the divergence, and what
        the z-loss adds to the sum, its weights included.
    """
    from pretrain.losses.loss_kernel import launch

    # Triton launches on the current device; without one (its interpreter) there is nothing to choose.
    with torch.cuda.device(logits_CV.device) if logits_CV.is_cuda else nullcontext():
        return launch(
            logits_CV,
            teacher_CV,
            labels_C,
            weights_C,
            weight_gt,
            weight_kd,
            temperature,
            reverse,
            z_loss,
            softcap,
            teacher_softcap,
            with_gradient,
        )


@token_losses.register_fake
def _(logits_CV, teacher_CV, *settings):  # type: ignore[no-untyped-def]
    rows = reported_rows(teacher_CV is not None, settings[6])
    return logits_CV.new_empty(rows, logits_CV.shape[0], dtype=torch.float32)


def reported_rows(teacher: bool, z_loss: float) -> int:
    """R, the numbers that `token_losses` gives of every token."""
    return 2 + teacher + bool(z_loss)


__all__ = ["reported_rows", "token_losses"]
