"""One optimizer step: forward and backward of every micro-batch, the update, and what all ranks then know of it.

    micro-batches ──> forward ──> backward ──┐ (each)
                                             ├──> [loss, metrics, samples] ──copy──┐
                                             └──> update                           ▼
    one sum over the ranks: [weight of the next batch, stop flag, loss, metrics, losses of samples]

The weight of a batch must be known on all ranks before its backward pass, so it travels with the sum of the step
before; its batch is there by then. The copy is enqueued before the update, which waits for the device by itself (the
norm of the gradients decides whether it is applied), so when it returns the numbers are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_pipeline.loader import Batch
from pretrain.config import TrainConfig
from pretrain.engine import Engine
from pretrain.ranks.stragglers import PhaseTimes
from pretrain.ranks.world import World
from pretrain.rounds.loss_record import in_global_batch
from pretrain.stop_signal import StopSignal
from pretrain.transfers import Reading, on_device

Item = TypeVar("Item")


class Step(NamedTuple):
    """What one optimizer step reports, the same on every rank."""

    loss: float
    """Mean over the global batch."""
    weight: float
    """What the sum was divided by."""
    metrics: dict[str, float]
    """The task's own."""
    applied: bool
    """Whether the update was applied; False where gradients were non-finite."""
    stopping: bool
    """Whether any rank was told to stop."""
    samples_2B: np.ndarray
    """Summed loss and weight of each sample of the global batch, where samples are recorded; else empty."""


def with_next(items: Iterable[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Each item with the one that follows it, None after the last."""
    yield from pairwise(chain(items, [None]))  # type: ignore[misc]


class TrainingStep:
    """The steps of one pass through the loop, called with consecutive batches.

    Args:
        engine: what is trained.
        config: seed.
        world: the ranks.
        phases: takes the time of every phase.
        samples: whether to report single samples.
    """

    def __init__(self, engine: Engine, config: TrainConfig, world: World, phases: PhaseTimes, samples: bool) -> None:
        self.engine, self.seed, self.world, self.phases, self.samples = engine, config.seed, world, phases, samples
        self._weight: float | None = None
        """Weight of the next global batch, known from the step before it."""

    def __call__(self, batches: list[Batch], coming: list[Batch] | None, data_step: int, stop: StopSignal) -> Step:
        """Takes this rank's micro-batches of global batch `data_step`. Collective.

        Args:
            batches: this rank's micro-batches.
            coming: those of the next step, None after the last one.
            data_step: number of the global batch, which seeds what is drawn in it.
            stop: asked once, for all ranks.
        """
        world = self.world
        self.engine.accumulate(len(batches))
        weight = self._weight if self._weight is not None else world.sum([self._own_weight(batches)])[0]
        # DeepSpeed averages over ranks and micro-batches; scaling by the step's own weight makes that an exact mean.
        scale = world.size * len(batches) / max(weight, 1.0)
        torch.manual_seed(((self.seed << 32) + (data_step << 12) + world.rank) % 2**63)
        totals: list[Tensor] = []
        samples: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for batch in batches:
            with self.phases.during("forward"):
                output = self.engine.wrapped(on_device(batch, world.device))
            with self.phases.during("backward"):
                self.engine.backward(output.total * scale)
            totals.append(output.total.detach())
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach() / len(batches)
            if self.samples:
                samples += [output.per_sample, output.per_sample_weight]
            if len(totals) == len(batches):
                reading = Reading(_joined([sum(totals), *(metrics[name] for name in sorted(metrics)), *samples]))
            with self.phases.during("update"):
                applied = self.engine.update()

        numbers = reading.values()
        own, of_samples = numbers[: 1 + len(metrics)], in_global_batch(numbers[1 + len(metrics) :], len(batches), world)
        next_weight = self._own_weight(coming) if coming is not None else 0.0
        summed = world.sum([next_weight, float(stop.received is not None), *own, *of_samples])
        self._weight = summed[0] if coming is not None else None
        stopped, loss, *rest = summed[1:]
        means = {name: mean / world.size for name, mean in zip(sorted(metrics), rest, strict=False)}
        samples_2B = np.array(rest[len(metrics) :]).reshape(2, -1)
        return Step(loss / max(weight, 1.0), weight, means, applied, bool(stopped), samples_2B)

    def _own_weight(self, batches: list[Batch]) -> float:
        return sum(self.engine.task.weight(batch) for batch in batches)


def _joined(parts: list[Tensor]) -> Tensor:
    """All numbers in one tensor on the first one's device, float64 so that none is rounded: [N]."""
    device = parts[0].device
    return torch.cat([part.detach().double().reshape(-1).to(device, non_blocking=True) for part in parts])
