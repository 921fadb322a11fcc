"""What training itself knows about the data: the loss of every batch (and, if asked, of every sample) when it was seen.

Recorded from numbers that the step has computed anyway, kept in memory, and put on disk right before each checkpoint:
whatever checkpoint a killed run resumes from, the losses of all batches before it are there, and those after it are
computed again, to the same values, and written to the same places. What it costs: 8 bytes per batch (or sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.ranks.world import World
from pretrain.rounds.ledger import LossFile


def record_file(run: Path, round: int, unit: str) -> LossFile:
    """Training losses of round `round` (from 1): `unit` is batch or sample."""
    return LossFile(run / "rounds" / f"round_{round}.{'batches' if unit == 'batch' else 'samples'}.f32")


def in_global_batch(own: Sequence[float], micro_batches: int, world: World) -> list[float]:
    """This rank's samples at their places in the global batch, zeros at the others', so that a sum joins the ranks.

    Args:
        own: of each micro-batch of this rank the summed losses of its samples, then their weights, flattened.
        micro_batches: how many there are.
        world: the ranks; each has one contiguous part of the global batch.

    Returns:
        [2, B] flattened; empty if there are no samples.
    """
    if not own:
        return []
    mine_2N = np.concatenate(np.reshape(own, (micro_batches, 2, -1)), axis=1)
    whole_2RN = np.zeros((2, world.size, mine_2N.shape[1]))
    whole_2RN[:, world.rank] = mine_2N
    return whole_2RN.flatten().tolist()


class LossRecord:
    """Collects the losses of one round after the other; a disabled one (other ranks) does nothing.

    Args:
        run: run directory.
        samples: record single samples besides whole batches.
        enabled: whether this rank writes.
    """

    def __init__(self, run: Path, samples: bool, enabled: bool) -> None:
        self.run, self.samples, self.enabled = run, samples, enabled
        self._files: list[LossFile] = []
        self._round_began = self._first = 0
        self._pending: list[list[np.ndarray]] = []

    def begin(self, round: int, first_step: int) -> None:
        """The next losses belong to `round`, whose first data step is `first_step`."""
        self.flush()
        units = ("batch", "sample") if self.samples else ("batch",)
        self._files = [record_file(self.run, round, unit) for unit in units]
        self._round_began = first_step

    def add(self, data_step: int, loss: float, weight: float, samples_2B: np.ndarray) -> None:
        """Takes one global batch: its mean loss, its weight, and the summed loss and weight of each sample, [2, B].

        Consecutive calls take consecutive data steps; `samples_2B` is not looked at unless samples are recorded.
        """
        if not self.enabled:
            return
        if not self._pending:
            self._first = data_step
        pairs = [np.array([[loss], [weight]])]
        if self.samples:
            with np.errstate(invalid="ignore", divide="ignore"):  # a sample without labels has no mean: NaN
                pairs.append(np.stack([samples_2B[0] / samples_2B[1], samples_2B[1]]))
        self._pending.append(pairs)

    def recent(self, data_step: int, count: int) -> list[float]:
        """Mean losses of the last `count` batches of this round before `data_step`, as far as they are on disk."""
        if not self.enabled:
            return []
        end = data_step - self._round_began
        losses_N, _ = self._files[0].read(max(0, end - count), end)
        return losses_N.tolist()

    def flush(self) -> None:
        """Forces what was collected to disk."""
        if not self._pending:
            return
        for number, file in enumerate(self._files):
            pairs_2N = np.concatenate([pairs[number] for pairs in self._pending], axis=1)
            per_step = pairs_2N.shape[1] // len(self._pending)
            file.write((self._first - self._round_began) * per_step, pairs_2N[0], pairs_2N[1])
        self._pending = []
