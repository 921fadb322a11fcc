"""Validation loss: every sample of a held-out source once, divided among the ranks, in a fixed order."""

from __future__ import annotations

import numpy as np

from data_pipeline import Source
from pretrain.distributed import World
from pretrain.engine import Engine
from pretrain.scoring import score_samples


def mean_loss(engine: Engine, source: Source, world: World, micro_batch: int, samples: int | None) -> float:
    """Mean loss of `source` (nats per labelled token for a language model), over its first `samples` samples."""
    count = len(source) if samples is None else min(samples, len(source))
    with engine.evaluating() as module:
        losses_N, weights_N = score_samples(module, engine.task, source, np.arange(count), world, micro_batch)
    return float(losses_N.sum() / weights_N.sum())
