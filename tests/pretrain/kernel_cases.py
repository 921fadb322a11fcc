"""Runs the fused loss on a CPU: `TRITON_INTERPRET=1 python -m tests.pretrain.kernel_cases FILE`.

Triton's interpreter has to be chosen before Triton is imported, so this is a process of its own. It writes what the
kernel and the whole loss gave for every case; `test_loss_kernel.py` knows what they should have given.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.losses.chunked_cross_entropy import IGNORE_INDEX, Criterion, CrossEntropy, linear_loss
from pretrain.losses.fused_loss import token_losses
from pretrain.losses.loss_layout import LossLayout
from pretrain.losses.token_distillation import Distillation, DistillationConfig

C, V, ROW = 6, 4999, 5056
"""Two blocks of the kernel, the second mostly empty; rows of a multiple of 64."""
S, D, E = 9, 8, 12
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Setting(NamedTuple):
    """What the loss is made of."""

    distillation: DistillationConfig | None
    z_loss: float = 0.0
    softcap: float | None = None
    teacher_softcap: float | None = None


SETTINGS = {
    "alone": Setting(None),
    "forward": Setting(DistillationConfig(0.3, 1.7, 2.0)),
    "reverse": Setting(DistillationConfig(1.0, 0.5, 0.7, reverse=True)),
    "alone-z": Setting(None, 0.02),
    "alone-capped": Setting(None, 0.0, 20.0),
    "forward-both": Setting(DistillationConfig(0.3, 1.7, 2.0), 0.02, 20.0, 25.0),
}
CASES = [
    (dtype, setting, weighted)
    for dtype, setting, weighted in product(DTYPES, SETTINGS, (False, True))
    if dtype == "fp32" or "-" not in setting
]
"""Type, setting, whether tokens have weights; what is added once is tested in one type, interpretation is slow."""


@dataclass(frozen=True)
class Rows:
    """A chunk of logits."""

    logits_CV: Tensor
    teacher_CV: Tensor | None
    labels_C: Tensor
    weights_C: Tensor | None


def padded(rows_CV: Tensor) -> Tensor:
    """The same rows in a longer memory, whose padding is not a number."""
    memory = rows_CV.new_full((len(rows_CV), ROW), float("nan"))
    memory[:, :V] = rows_CV
    return memory[:, :V]


def rows(dtype: str, setting: str, weighted: bool) -> Rows:
    """Token 0 has no label, 1 has its most likely id, 2 a peak in the first block, and 3 is what the teacher says."""
    generator = torch.Generator().manual_seed(5)
    logits, other = (3 * torch.randn(C, V, generator=generator) for _ in range(2))
    logits[2, 7] = 40.0
    other[3] = logits[3]
    labels = torch.randint(0, V, (C,), generator=generator)
    labels[0], labels[1] = IGNORE_INDEX, logits[1].argmax()
    student, taught = padded(logits.to(DTYPES[dtype])), padded(other.to(DTYPES[dtype]))
    weights = torch.rand(C, generator=generator) if weighted else None
    return Rows(student, taught if SETTINGS[setting].distillation else None, labels, weights)


def settings(setting: str) -> tuple[float, float, float, bool, float, float, float]:
    """Weights, temperature, direction, z-loss and caps as `token_losses` takes them."""
    distillation, z_loss, *caps = SETTINGS[setting]
    config = distillation or DistillationConfig(1.0, 0.0)
    cap, teacher_cap = (cap or 0.0 for cap in caps)
    return config.weight_gt, config.weight_kd, config.temperature, config.reverse, z_loss, cap, teacher_cap


def head(setting: str, weighted: bool) -> tuple[Tensor, Tensor, Criterion]:
    """Hidden states, a head whose vocabulary is no multiple of anything, and a criterion, in float32."""
    generator = torch.Generator().manual_seed(6)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(0, 101, (1, S), generator=generator)
    labels[0, 4] = IGNORE_INDEX
    config, z_loss, cap, teacher_cap = SETTINGS[setting]
    truth = CrossEntropy(labels, draw(1, S).abs() if weighted else None, accuracy=True, z_loss=z_loss, softcap=cap)
    hidden, weight = draw(1, S, D).requires_grad_(), draw(101, D).requires_grad_()
    if config is None:
        return hidden, weight, truth
    return hidden, weight, Distillation(truth, draw(1, S, E), draw(101, E), config, teacher_cap)


def whole(setting: str, weighted: bool, layout: LossLayout) -> dict[str, Tensor]:
    """Everything that the loss of a head gives."""
    hidden, weight, criterion = head(setting, weighted)
    total, tokens = linear_loss(hidden, weight, criterion, layout)
    d_hidden, d_weight = torch.autograd.grad(0.3 * total, (hidden, weight))
    frozen, _ = linear_loss(hidden.detach(), weight.detach(), criterion, layout)
    return {"total": total.detach(), "frozen": frozen, "d_hidden": d_hidden, "d_weight": d_weight, **tokens}


def main() -> None:
    """Writes every result into the file that the command names."""
    results: dict[str, Tensor] = {}
    for case in CASES:
        data, name, fixed = rows(*case), "/".join(map(str, case)), settings(case[1])
        losses = token_losses(data.logits_CV, data.teacher_CV, data.labels_C, data.weights_C, *fixed, True)
        results[f"{name}/losses"] = losses
        results[f"{name}/gradient"] = data.logits_CV.as_strided((C, ROW), (ROW, 1)).clone()
    for setting, weighted in product(SETTINGS, (False, True)):
        for name, tensor in whole(setting, weighted, LossLayout(4, 64, fused=True)).items():
            results[f"head/{setting}/{weighted}/{name}"] = tensor.contiguous().clone()
    nowhere = rows("fp32", "alone", False)
    nowhere.labels_C[:2] = torch.tensor([V, -1])
    results["nowhere/losses"] = token_losses(nowhere.logits_CV, None, nowhere.labels_C, None, *settings("alone"), True)
    results["nowhere/gradient"] = nowhere.logits_CV.contiguous()
    save_file(results, sys.argv[1])


if __name__ == "__main__":
    main()
