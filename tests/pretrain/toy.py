"""A user's own Task in a hundred lines: the trainer is told about it by import path alone.

A small network that maps bags of tokens to labels, from a source that lives in memory. `poison` multiplies the loss of
the samples it names by `factor`, NaN unless told otherwise, for the tests of the guards; `signals` sends this process a
signal in the midst of work.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.loader import Batch
from pretrain.tasks.base import LossOutput, Task, seeded_build

WIDTH, CLASSES = 16, 5


class ToySource:
    """Sample i is a pure function of i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(index)
        features = generator.standard_normal(WIDTH, dtype=np.float32)
        return {"features": features, "label": np.int64(int(features[:CLASSES].argmax())), "index": np.int64(index)}

    def documents(self, index: int) -> list[Any]:
        return []

    def identity(self) -> dict[str, Any]:
        return {"kind": "toy", "size": self.size}


class ToyTask(Task):
    """`signals` maps "training" or "frozen" to [n, name]: signal `name` is sent in the n-th such forward pass."""

    def __init__(
        self,
        size: int = 64,
        poison: list[int] | None = None,
        factor: float = float("nan"),
        signals: dict[str, list[Any]] | None = None,
    ) -> None:
        self.size, self.poison, self.factor, self.signals = size, poison or [], factor, signals or {}
        self.passes = {"training": 0, "frozen": 0}

    def build_model(self, seed: int) -> nn.Module:
        layers = lambda: nn.Sequential(nn.Linear(WIDTH, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, CLASSES))  # noqa: E731
        return seeded_build(layers, seed)

    def training_sources(self) -> tuple[Sequence[Any], None]:
        return [ToySource(self.size)], None

    def validation_sources(self) -> Mapping[str, Any]:
        return {"held_out": ToySource(7)}

    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}

    def weight(self, batch: Batch) -> float:
        return float(len(batch["label"]))

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        self._count("training" if model.training else "frozen")
        features = batch["features"].to(next(model.parameters()).dtype)
        per_sample = F.cross_entropy(model(features).float(), batch["label"], reduction="none")
        if self.poison:
            bad = torch.isin(batch["index"], torch.tensor(self.poison))
            per_sample = per_sample * torch.where(bad, self.factor, 1.0)
        return LossOutput(
            per_sample.sum(), per_sample.detach(), torch.ones_like(per_sample), {"first": per_sample[0].detach()}
        )

    def _count(self, mode: str) -> None:
        if mode == "training":
            self.passes["frozen"] = 0  # counted from the last training step: rescoring is longer than validation
        self.passes[mode] += 1
        after, name = self.signals.get(mode, (0, ""))
        if self.passes[mode] == after:
            signal.raise_signal(signal.Signals[name])  # to this thread, which hears it at once

    def units_per_sample(self) -> tuple[int, str]:
        return 1, "samples"

    def flops_per_sample(self) -> float:
        return 6.0 * (WIDTH * 32 + 32 * CLASSES)

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, directory / "model.safetensors")
