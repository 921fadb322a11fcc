"""`Order`: which samples form global batch t, as arithmetic on (seed, round, t).

    step t, batch size B        positions          p = t*B ... t*B + B-1     of one endless stream
    without weights             epoch, place       e = p // N, p % N         N = all samples of all sources
                                sample             permute(place; seed, round, e)
    with weights                period, slot       q = p // 4096, permute(p % 4096; seed, round, q)
                                source, draw       each source owns a share of the 4096 slots; its k-th draw ever
                                sample             permute(draw % n; seed, round, draw // n, source)

Nothing is stored and nothing grows with the data, so resuming costs the same at any step, and world size, micro-batch
and worker count cannot change what a step trains on: they only cut the batch. An epoch of a source visits each of its
samples exactly once, and every epoch has another order. A batch may straddle two epochs. The size of the batches may
change at a step: the stream stays the same and is cut differently from there on.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from data_pipeline.errors import OrderError
from data_pipeline.permutation import derive_key, permute

MAX_BATCH = 2**24
"""Samples of a global batch at most, in files from elsewhere."""
MAX_STEP = 2**53
"""The largest step that such a file may name: exact in JSON and in float64."""
BatchSize = Annotated[int, Ge(1), Le(MAX_BATCH)]
BatchChanges = list[tuple[Annotated[int, Ge(0), Le(MAX_STEP)], BatchSize]]
"""First step and size of the batches of a changed size, as `Order.identity` gives them and as files must have them."""
PERIOD = 4096
"""Slots per period: weights are honoured to 1/8192, and exactly over every period."""


class Stretch(NamedTuple):
    """Batches of one size."""

    first_step: int
    """The first of them."""
    position: int
    """Where in the stream it begins."""
    batch_size: int


class Order:
    """Order of the samples of one or several sources.

    Args:
        sizes: samples in each source; sample numbers run through the sources one after the other.
        batch_size: samples per global batch.
        seed: names the order.
        weights: share of each source in the stream (normalised here); None takes every sample equally often.
        round: training round; each has another order.

    Raises:
        OrderError: an empty source, a non-positive batch size, or weights that do not match the sources.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        round: int = 0,
    ):
        if not sizes or min(sizes) < 1:
            raise OrderError(
                f"sizes: every source needs at least one sample, found {list(sizes)}; leave empty ones out"
            )
        if batch_size < 1:
            raise OrderError(f"batch_size: expected at least 1, found {batch_size}")
        self.sizes = [int(size) for size in sizes]
        self._stretches = [Stretch(0, 0, int(batch_size))]
        self.seed = int(seed)
        self.round = int(round)
        self.weights = None if weights is None else [float(weight) for weight in weights]
        self._first_sample = np.concatenate([[0], np.cumsum(self.sizes)])
        if self.weights is not None:
            self._slots = apportion(self.weights, len(self.sizes))
            self._first_slot = np.concatenate([[0], np.cumsum(self._slots)])

    @property
    def batch_size(self) -> int:
        """Samples of a global batch, in the end."""
        return self._stretches[-1].batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take as many samples as there are, rounded up."""
        return -(-sum(self.sizes) // self.batch_size)

    def resize(self, step: int, batch_size: int) -> None:
        """From global batch `step` on, batches hold `batch_size` samples.

        Raises:
            OrderError: a non-positive size, or batches from `step` on were resized already.
        """
        if batch_size < 1 or step < self._stretches[-1].first_step:
            raise OrderError(f"batches from {step} on cannot be given {batch_size} samples after {self._stretches}")
        begin = Stretch(step, self.position(step), int(batch_size))
        kept = [stretch for stretch in self._stretches if stretch.first_step < step]
        self._stretches = [*kept, begin]

    def restart(self, batch_size: int, changes: Sequence[Sequence[int]] = ()) -> None:
        """Forgets all sizes for those of another order: its first, and its `batch_changes`, as in `identity`."""
        self._stretches = [Stretch(0, 0, int(batch_size))]
        for step, size in changes:
            self.resize(step, size)

    def resize_from(self, step: int, sizes: Sequence[tuple[int, int]]) -> None:
        """Forgets the sizes of the batches from `step` on for others, in the form of `batch_sizes_from`."""
        self._stretches = [stretch for stretch in self._stretches if stretch.first_step < step]
        for first, size in sizes:
            self.resize(first, size)

    def batch_sizes_from(self, step: int) -> list[tuple[int, int]]:
        """First step and size of the batches of every size from `step` on, the first of them at `step` itself."""
        later = [stretch for stretch in self._stretches if stretch.first_step > step]
        return [(step, self.batch_size_at(step)), *((stretch.first_step, stretch.batch_size) for stretch in later)]

    def batch_size_at(self, step: int) -> int:
        """Samples of global batch `step`."""
        return self._stretch(step).batch_size

    def position(self, step: int) -> int:
        """Samples in all batches before global batch `step`."""
        begun = self._stretch(step)
        return begun.position + (step - begun.first_step) * begun.batch_size

    def _stretch(self, step: int) -> Stretch:
        return next(stretch for stretch in reversed(self._stretches) if step >= stretch.first_step)

    def identity(self) -> dict[str, Any]:
        """JSON-able description: everything that the batches depend on."""
        first, *later = self._stretches
        changes = {"batch_changes": [[begun.first_step, begun.batch_size] for begun in later]} if later else {}
        return {
            "sizes": self.sizes,
            "batch_size": first.batch_size,
            "seed": self.seed,
            "weights": self.weights,
            "round": self.round,
        } | changes

    def batch(self, step: int) -> np.ndarray:
        """Sample numbers of global batch `step` (from 0): int64 [batch_size], with the size that batches have there."""
        if step < 0:
            raise OrderError(f"step: expected 0 or more, found {step}")
        position_B = np.arange(self.position(step), self.position(step + 1), dtype=np.int64)
        if self.weights is None:
            return self._draw(position_B, sum(self.sizes), source=-1)
        source_B, draw_B = self._apportioned(position_B)
        sample_B = np.empty_like(position_B)
        for source in np.unique(source_B).tolist():
            chosen = source_B == source
            drawn = self._draw(draw_B[chosen], self.sizes[source], source)
            sample_B[chosen] = self._first_sample[source] + drawn
        return sample_B

    def _draw(self, draw_N: np.ndarray, size: int, source: int) -> np.ndarray:
        """The samples, in [0, size), of the given draws from an endlessly reshuffled source: int64 [N]."""
        epoch_N, place_N = np.divmod(draw_N, size)
        sample_N = np.empty_like(draw_N)
        for epoch in range(epoch_N.min(), epoch_N.max() + 1):
            chosen = epoch_N == epoch
            sample_N[chosen] = permute(place_N[chosen], size, derive_key(self.seed, self.round, epoch, source))
        return sample_N

    def _apportioned(self, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source of each position, and how many draws that source has served before it: int64 [B] each."""
        period_B, place_B = np.divmod(position_B, PERIOD)
        slot_B = np.empty_like(position_B)
        for period in range(period_B[0], period_B[-1] + 1):
            chosen = period_B == period
            slot_B[chosen] = permute(place_B[chosen], PERIOD, derive_key(self.seed, self.round, period))
        source_B = np.searchsorted(self._first_slot, slot_B, side="right") - 1
        return source_B, period_B * self._slots[source_B] + slot_B - self._first_slot[source_B]


def apportion(weights: Sequence[float], sources: int) -> np.ndarray:
    """Slots of each source in a period, by largest remainder: int64 [sources], summing to `PERIOD`.

    Raises OrderError when the weights do not match the sources, are not positive, or leave a source without a slot.
    """
    weight_M = np.asarray(weights, dtype=np.float64)
    if weight_M.shape != (sources,):
        raise OrderError(f"weights: expected one per source ({sources}), found {weight_M.size}")
    if not np.all(np.isfinite(weight_M)) or weight_M.min() <= 0:
        raise OrderError(f"weights: expected positive numbers, found {list(weights)}; leave unwanted sources out")
    exact_M = weight_M / weight_M.sum() * PERIOD
    slot_M = np.floor(exact_M).astype(np.int64)
    largest = np.argsort(slot_M - exact_M, kind="stable")[: PERIOD - slot_M.sum()]
    slot_M[largest] += 1
    if slot_M.min() == 0:
        raise OrderError(f"weights: {list(weights)} gives source {slot_M.argmin()} less than 1/{PERIOD} of the samples")
    return slot_M
