"""A task of your own in less than a hundred lines: an MLP that reads scikit-learn's 8 x 8 digits.

python pretrain/train.py --config examples/digits.yaml
deepspeed --num_accelerators 2 pretrain/train.py --config examples/digits.yaml --batch.micro_size 32
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.loader import Batch
from data_pipeline.source import DocumentSpan, Source
from pretrain.tasks import LossOutput, Task
from pretrain.tasks.base import seeded_build
from pretrain.tasks.facts import Suggestion

HELD_OUT = 5
"""Every fifth digit is held out."""


class Digits:
    """A source: numbered samples, each a pure function of its number."""

    def __init__(self, held_out: bool) -> None:
        data = load_digits()
        chosen = (np.arange(len(data.target)) % HELD_OUT == 0) == held_out
        self.held_out = held_out
        self.pixels_ND = (data.data[chosen] / 16).astype(np.float32)
        self.digits_N = data.target[chosen].astype(np.int64)

    def __len__(self) -> int:
        return len(self.digits_N)

    def sample(self, index: int) -> dict[str, np.ndarray]:
        return {"pixels": self.pixels_ND[index], "digit": self.digits_N[index]}

    def identity(self) -> dict[str, Any]:
        return {"kind": "digits", "held_out": self.held_out}

    def documents(self, index: int) -> list[DocumentSpan]:
        return [DocumentSpan("digits", index, 0, 1, 0)]


class DigitsTask(Task):
    """Ten classes, one hidden layer.

    Args:
        width: of the hidden layer.
    """

    kind = "classifier"
    measurement = "examples.digits_measurement:confusions"
    suggestions = (Suggestion("Try a wider layer.", "{train} --task.width 256 --output {run}-wide"),)

    def __init__(self, width: int = 64) -> None:
        self.width = width

    def build_model(self, seed: int) -> nn.Module:
        return seeded_build(
            lambda: nn.Sequential(nn.Linear(64, self.width), nn.GELU(), nn.Linear(self.width, 10)), seed
        )

    def training_sources(self) -> tuple[Sequence[Source], None]:
        return [Digits(held_out=False)], None

    def validation_sources(self) -> Mapping[str, Source]:
        return {"held_out": Digits(held_out=True)}

    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}

    def weight(self, batch: Batch) -> float:
        return float(len(batch["digit"]))

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        weight = next(model.parameters())  # float32, or bf16 as on every GPU; the loader's pixels are float32
        logits_BC = model(batch["pixels"].to(weight.dtype))
        losses_B = F.cross_entropy(logits_BC.float(), batch["digit"], reduction="none")
        right = (logits_BC.argmax(1) == batch["digit"]).float().mean()
        return LossOutput(losses_B.sum(), losses_B.detach(), torch.ones_like(losses_B), {"accuracy": right})

    def units_per_sample(self) -> tuple[int, str]:
        return 1, "digits"

    def flops_per_sample(self) -> float:
        return 6.0 * self.width * (64 + 10)

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, directory / "model.safetensors")
