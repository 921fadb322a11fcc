"""The kernel of `pretrain/losses/fused_loss.py:token_losses`: one program a token, which passes over its row of logits
twice.

    pass 1   maximum, sum of exponentials (online: rescaled whenever the maximum grows), place of the maximum;
             with a teacher the same of both rows at temperature tau, and the expectation in their divergence
    pass 2   the gradient, written over the row; zeros over its padding

With a soft cap both passes cap what they read, and the gradient is that of the logits before it.

All statistics are float32 whatever the logits are. Rows are read to their length in memory, which is a multiple that
lets a thread read 16 bytes at once; what lies behind the vocabulary counts as -inf.

    KL(T || S) = sum_v p_T (t - s) / tau - lse_T + lse_S       exactly 0 for equal rows: the sum has only zeros
    KL(S || T) = sum_v p_S (s - t) / tau - lse_S + lse_T

Shapes: C tokens of one chunk, V vocabulary, R rows of the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretrain.losses.chunked_cross_entropy import IGNORE_INDEX
from pretrain.losses.fused_loss import reported_rows

BLOCK = 4096
"""Logits of a row that a program holds at one time: 16 in each of 256 threads."""
WARPS = 8


@triton.jit
def soft_capped(logits, cap):
    """c tanh(logits / c), by the exponential that is here already; off by 2^-24 c at most where it is small."""
    return cap * (2.0 / (1.0 + tl.exp(-2.0 * logits / cap)) - 1.0)


@triton.jit
def token_losses_kernel(
    logits_ptr,
    teacher_ptr,
    labels_ptr,
    weights_ptr,
    out_ptr,
    tokens,
    vocabulary,
    row_length,
    teacher_row_length,
    ignored,
    weight_gt,
    weight_kd,
    temperature,
    z_loss,
    softcap,
    teacher_softcap,
    TEACHER: tl.constexpr,
    REVERSE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    Z_LOSS: tl.constexpr,
    CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token. `*_ptr` are the tensors of `token_losses`, `out_ptr` its result [R, C]."""
    token = tl.program_id(0)
    logits_ptr += token.to(tl.int64) * row_length
    teacher_ptr += token.to(tl.int64) * teacher_row_length
    label = tl.load(labels_ptr + token)
    place = tl.arange(0, BLOCK)
    if label == ignored:
        tl.store(out_ptr + token, 0.0)
        tl.store(out_ptr + tokens + token, 0.0)
        if TEACHER:
            tl.store(out_ptr + 2 * tokens + token, 0.0)
        if Z_LOSS:
            tl.store(out_ptr + (3 if TEACHER else 2) * tokens + token, 0.0)
        if GRADIENT:
            for start in range(0, row_length, BLOCK):
                zeros = tl.zeros([BLOCK], dtype=logits_ptr.dtype.element_ty)
                tl.store(logits_ptr + start + place, zeros, mask=start + place < row_length)
    else:
        rate = 1.0 / temperature
        # Read before the first barrier of pass 1, because pass 2 overwrites it. Of a label that does not exist the loss
        # and the gradient are NaN, which guards notice.
        at_label = tl.load(logits_ptr + label, mask=(label >= 0) & (label < vocabulary), other=float("nan"))
        at_label = at_label.to(tl.float32)
        if CAPPED:
            at_label = soft_capped(at_label, softcap)
        # s and t: student and teacher; 1: at temperature 1, else at tau. `highest` and `shift_t` are the maxima so far,
        # `sum_*` the sums of exponentials relative to them.
        highest = tl.full([], -float("inf"), dtype=tl.float32)
        best = tl.zeros([], dtype=tl.int32)
        sum_1 = tl.zeros([], dtype=tl.float32)
        sum_s = tl.zeros([], dtype=tl.float32)
        shift_t = tl.full([], -float("inf"), dtype=tl.float32)
        sum_t = tl.zeros([], dtype=tl.float32)
        expectation = tl.zeros([], dtype=tl.float32)
        for start in range(0, row_length, BLOCK):
            column = start + place
            s = tl.load(logits_ptr + column, mask=column < row_length, other=0.0).to(tl.float32)
            if CAPPED:
                s = soft_capped(s, softcap)
            s = tl.where(column < vocabulary, s, -float("inf"))
            peak = tl.max(s, axis=0)
            best = tl.where(peak > highest, start + tl.argmax(s, axis=0), best)
            risen = tl.maximum(highest, peak)
            shift = tl.where(risen == -float("inf"), 0.0, risen)
            sum_1 = sum_1 * tl.exp(highest - shift) + tl.sum(tl.exp(s - shift), axis=0)
            if TEACHER:
                t = tl.load(teacher_ptr + column, mask=column < row_length, other=0.0).to(tl.float32)
                if TEACHER_CAPPED:
                    t = soft_capped(t, teacher_softcap)
                t = tl.where(column < vocabulary, t, -float("inf"))
                risen_t = tl.maximum(shift_t, tl.max(t, axis=0))
                over_t = tl.where(risen_t == -float("inf"), 0.0, risen_t)
                p_s, fade_s = tl.exp((s - shift) * rate), tl.exp((highest - shift) * rate)
                p_t, fade_t = tl.exp((t - over_t) * rate), tl.exp((shift_t - over_t) * rate)
                sum_s = sum_s * fade_s + tl.sum(p_s, axis=0)
                sum_t = sum_t * fade_t + tl.sum(p_t, axis=0)
                ahead = tl.where(column < vocabulary, (t - s) * rate, 0.0)
                if REVERSE:
                    expectation = expectation * fade_s - tl.sum(p_s * ahead, axis=0)
                else:
                    expectation = expectation * fade_t + tl.sum(p_t * ahead, axis=0)
                shift_t = risen_t
            highest = risen
        lse_1 = highest + tl.log(sum_1)
        tl.store(out_ptr + token, lse_1 - at_label)
        tl.store(out_ptr + tokens + token, tl.where(best == label, 1.0, 0.0))
        lse_s = tl.zeros([], dtype=tl.float32)
        lse_t = tl.zeros([], dtype=tl.float32)
        kl = tl.zeros([], dtype=tl.float32)
        if TEACHER:
            lse_s = highest * rate + tl.log(sum_s)
            lse_t = shift_t * rate + tl.log(sum_t)
            kl = expectation / sum_s - lse_s + lse_t if REVERSE else expectation / sum_t - lse_t + lse_s
            tl.store(out_ptr + 2 * tokens + token, temperature * temperature * kl)
        scale = weight_gt + tl.zeros([], dtype=tl.float32)
        if WEIGHTED:
            scale = weight_gt * tl.load(weights_ptr + token)
        scale += at_label - at_label
        if Z_LOSS:
            tl.store(out_ptr + (3 if TEACHER else 2) * tokens + token, scale * z_loss * lse_1 * lse_1)
        if GRADIENT:
            for start in range(0, row_length, BLOCK):
                column = start + place
                s = tl.load(logits_ptr + column, mask=column < row_length, other=0.0).to(tl.float32)
                if CAPPED:
                    s = soft_capped(s, softcap)
                likely = tl.exp(s - lse_1)
                if Z_LOSS:
                    likely *= 1.0 + 2.0 * z_loss * lse_1
                gradient = scale * (likely - tl.where(column == label, 1.0, 0.0))
                if TEACHER:
                    t = tl.load(teacher_ptr + column, mask=column < row_length, other=0.0).to(tl.float32)
                    if TEACHER_CAPPED:
                        t = soft_capped(t, teacher_softcap)
                    log_s, log_t = s * rate - lse_s, t * rate - lse_t
                    apart = tl.exp(log_s) * (log_s - log_t - kl) if REVERSE else tl.exp(log_s) - tl.exp(log_t)
                    gradient += weight_kd * temperature * apart
                if CAPPED:
                    gradient *= 1.0 - (s / softcap) * (s / softcap)
                gradient = tl.where(column < vocabulary, gradient, 0.0)
                stored = gradient.to(logits_ptr.dtype.element_ty)
                tl.store(logits_ptr + column, stored, mask=column < row_length)


def launch(
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
    """`token_losses` on the tensors' own device, which must be the current one."""
    tokens, vocabulary = logits_CV.shape
    teacher = logits_CV if teacher_CV is None else teacher_CV
    if logits_CV.stride(1) != 1 or teacher.stride(1) != 1:
        raise ValueError(f"rows of logits must be contiguous, their strides are {logits_CV.stride()}")
    out_RC = logits_CV.new_empty(reported_rows(teacher_CV is not None, z_loss), tokens, dtype=torch.float32)
    if tokens:
        token_losses_kernel[(tokens,)](
            logits_CV,
            teacher,
            labels_C.contiguous(),
            labels_C if weights_C is None else weights_C.float().contiguous(),
            out_RC,
            tokens,
            vocabulary,
            logits_CV.stride(0),
            teacher.stride(0),
            IGNORE_INDEX,
            weight_gt,
            weight_kd,
            temperature,
            z_loss,
            softcap,
            teacher_softcap,
            TEACHER=teacher_CV is not None,
            REVERSE=reverse,
            WEIGHTED=weights_C is not None,
            Z_LOSS=bool(z_loss),
            CAPPED=bool(softcap),
            TEACHER_CAPPED=bool(teacher_softcap),
            GRADIENT=with_gradient,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out_RC
