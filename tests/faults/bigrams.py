"""The victim of the injuries in `make test`: it imports no transformers, so that its ranks start in half the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.loader import Batch, collate_tokens
from data_pipeline.shards.token_source import TokenSource
from pretrain.losses.chunked_cross_entropy import IGNORE_INDEX
from pretrain.tasks.base import LossOutput, Task, seeded_build
from tests.faults.victim import Wounded

WIDTH = 16


class BigramTask(Task):
    """Predicts every token of real shards from the one before it."""

    def __init__(self, train: list[str], valid: dict[str, str], vocab_size: int, sequence_length: int = 32) -> None:
        self.train, self.valid = train, valid
        self.vocab_size, self.sequence_length = vocab_size, sequence_length

    def build_model(self, seed: int) -> nn.Module:
        size = self.vocab_size
        return seeded_build(
            lambda: nn.Sequential(nn.Embedding(size, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, size)), seed
        )

    def training_sources(self) -> tuple[Sequence[Any], None]:
        return [TokenSource(directory, self.sequence_length) for directory in self.train], None

    def validation_sources(self) -> Mapping[str, Any]:
        return {name: TokenSource(directory, self.sequence_length) for name, directory in self.valid.items()}

    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        return collate_tokens(samples)

    def weight(self, batch: Batch) -> float:
        return float((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        labels_BS = batch["labels"]
        logits_BVS = model(batch["input_ids"]).transpose(1, 2)
        sums_B = F.cross_entropy(logits_BVS, labels_BS, ignore_index=IGNORE_INDEX, reduction="none").sum(dim=1)
        counts_B = (labels_BS != IGNORE_INDEX).sum(dim=1).to(sums_B.dtype)
        return LossOutput(sums_B.sum(), sums_B.detach(), counts_B, {})

    def units_per_sample(self) -> tuple[int, str]:
        return self.sequence_length, "tokens"

    def flops_per_sample(self) -> float:
        return 6.0 * WIDTH * self.vocab_size * self.sequence_length

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, directory / "model.safetensors")


class WoundedBigrams(Wounded, BigramTask):
    """Trains one."""
