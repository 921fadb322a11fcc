"""A run that resumes with other global batches than it was started with: asked for, or refused."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.order import Order
from data_pipeline.round_order import RoundsOrder
from pretrain.audit import describe_sizes
from pretrain.checkpoints.checkpoint import Saved
from pretrain.config import TrainConfig
from pretrain.errors import ConfigurationError


class BatchChange(NamedTuple):
    """Other global batches from a checkpoint on."""

    sizes: list[tuple[int, int]]
    """(number of a global batch, samples in it and in those after it)."""
    words: str
    """What changes, for the log."""


def sizes_to_resume_with(order: RoundsOrder, config: TrainConfig, saved: Saved) -> BatchChange | None:
    """Gives `order` the global batches of a checkpoint; returns those from there on if they are to be others.

    Raises:
        ConfigurationError: they would be, but it was not asked for, or the run has several rounds.
    """
    then, first = saved.meta["identity"]["order"], saved.position.data_step
    asked = Order(order.sizes, config.batch.size, config.seed)
    asked.restart(config.batch.size, config.batch.ramp)
    order.restart(then["batch_size"], then.get("batch_changes", []))
    coming = asked.batch_sizes_from(first)
    before, now = describe_sizes(order.batch_sizes_from(first)), describe_sizes(coming)
    name = "batch.size with batch.ramp" if config.batch.ramp else "batch.size"
    if config.rounds.count > 1 and (before != now or then.get("batch_changes")):
        raise ConfigurationError(
            f"{name} is {now}, but {saved.path} was written with {describe_sizes(order.batch_sizes_from(0))}, "
            "and in a run of several rounds it cannot change: later rounds serve what the first one served"
        )
    if before == now:
        return None
    if not config.batch.allow_change:
        raise ConfigurationError(
            f"{name} is {now}, but {saved.path} was written with {before}; use that again, or set "
            f"batch.allow_change to continue with batches of {now} from here on"
        )
    return BatchChange(coming, f"{before} -> {now} samples from batch {first} on")
