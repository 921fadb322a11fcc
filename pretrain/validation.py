"""Validation: every sample of a held-out source once, divided among the ranks, in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_pipeline.source import Source
from pretrain.config import TrainConfig
from pretrain.engine import Engine
from pretrain.errors import ConfigurationError
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


def validate_all(engine: Engine, sources: Mapping[str, Source], world: World, config: TrainConfig) -> dict[str, float]:
    """The row of a validation: losses and metrics of every held-out source, and their means. Collective.

    Returns:
        `loss` and the task's `mean_metrics` over all sources, then `loss/NAME` and `METRIC/NAME`; {} without sources.

    Raises:
        ConfigurationError: the task's `mean_metrics` names what it does not report.
    """
    task = engine.task
    losses: dict[str, float] = {}
    derived: dict[str, float] = {}
    for name, source in sources.items():
        losses[name], metrics = validate(engine, source, world, config.batch.micro_size, config.validation.samples)
        for metric, value in (metrics | task.validation_metrics(name, losses[name])).items():
            derived[f"{metric}/{name}"] = value
        if absent := [metric for metric in task.mean_metrics if f"{metric}/{name}" not in derived]:
            raise ConfigurationError(
                f"{type(task).__name__}.mean_metrics names {absent[0]!r}, which is not reported of the held-out source "
                f"{name}; return it from validation_metrics, or take it out"
            )
    if not losses:
        return {}
    means = {metric: sum(derived[f"{metric}/{name}"] for name in losses) / len(losses) for metric in task.mean_metrics}
    loss = sum(losses.values()) / len(losses)
    return {"loss": loss, **means, **{f"loss/{name}": value for name, value in losses.items()}, **derived}
