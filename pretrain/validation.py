"""Validation: every sample of a held-out source once, divided among the ranks, in a fixed order."""

from __future__ import annotations

import numpy as np

from data_pipeline.source import Source
from pretrain.engine import Engine
from pretrain.ranks.world import World
from pretrain.scoring import score_samples


def validate(
    engine: Engine, source: Source, world: World, micro_batch: int, samples: int | None
) -> tuple[float, dict[str, float]]:
    """Mean loss of `source` over its first `samples` samples (nats per labelled token for a language model).

    Returns:
        The mean loss, and the task's own metrics.
    """
    count = len(source) if samples is None else min(samples, len(source))
    with engine.evaluating() as module:
        scores = score_samples(module, engine.task, source, np.arange(count), world, micro_batch)
    return float(scores.losses_N.sum() / scores.weights_N.sum()), scores.metrics
