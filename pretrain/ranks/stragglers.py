"""How long each rank spends in each phase of a step, and which rank the others wait for.

    data       the batch is awaited          forward    the task's loss of every micro-batch
    backward   gradients, and the collectives that overlap with them        update    clipping, optimizer, collectives

A slow rank shows in `data` or `forward`: the others spend the same time waiting for it, but in `backward` and `update`,
inside collectives. At ZeRO stage 3 `forward` gathers parameters too, so there all ranks look alike. On an accelerator
the phases are measured by its own events, which are read only when a row is logged.

What it costs: four readings of a clock per step, and one small sum over ranks per logged row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pretrain.ranks.world import World

PHASES = ("data", "forward", "backward", "update")
REVEALING = ("data", "forward")
"""Phases in which a slow rank is slow by itself, while the others wait for it elsewhere."""
NOTED_AFTER, NOTED_SECONDS = 3, 20.0
"""Readings in a row with the same straggler, and seconds between the first and the last of them, before it is noted."""
SHARE = 0.05
"""Of a step, that a straggler must cost to be noted."""


class Spread(NamedTuple):
    """One phase over all ranks, in seconds per step."""

    median: float
    slowest: float
    rank: int
    """Which is the slowest."""


class PhaseTimes:
    """Collects the phases of this rank's steps between two readings."""

    def __init__(self, device: torch.device) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = 0
        self._on_accelerator = device.type == "cuda"
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """The body of the `with` belongs to `phase`."""
        if self._on_accelerator:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((phase, begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - began

    def step(self, waited: float) -> None:
        """A step is done, for whose batch this rank has waited so many seconds."""
        self._seconds["data"] += waited
        self._steps += 1

    def read(self, world: World) -> dict[str, Spread]:
        """Every phase over all ranks since the last reading. Collective."""
        if self._events:
            self._events[-1][2].synchronize()
            for phase, begin, end in self._events:
                self._seconds[phase] += begin.elapsed_time(end) / 1000
        mine_P = np.array([self._seconds[phase] for phase in PHASES]) / max(1, self._steps)
        own_RP = np.zeros((world.size, len(PHASES)))
        own_RP[world.rank] = mine_P
        whole_RP = np.reshape(world.sum(own_RP.flatten().tolist()), own_RP.shape)
        self._seconds, self._steps, self._events = dict.fromkeys(PHASES, 0.0), 0, []
        return {phase: _spread(seconds_R) for phase, seconds_R in zip(PHASES, whole_RP.T, strict=True)}


def _spread(seconds_R: np.ndarray) -> Spread:
    lower_median = np.sort(seconds_R)[(len(seconds_R) - 1) // 2]  # of two ranks the faster one is the usual one
    return Spread(float(lower_median), float(seconds_R.max()), int(seconds_R.argmax()))


@dataclass
class StragglerWatch:
    """Notes a rank that the others wait for again and again.

    Args:
        ratio: seconds of the slowest rank over those of the median in a phase.
    """

    ratio: float
    _suspect: tuple[str, int] | None = None
    _in_a_row: int = 0
    _since: float = 0.0
    _noted: bool = False

    def look(self, spreads: dict[str, Spread], world: World, now: float) -> str:
        """Takes one reading, at `now` seconds of any clock.

        Returns:
            A sentence when a straggler is certain, once until it changes, else an empty string.
        """
        step = sum(spread.median for spread in spreads.values())
        found = max(REVEALING, key=lambda phase: spreads[phase].slowest - spreads[phase].median)
        median, slowest, rank = spreads[found]
        if slowest - median < SHARE * step or slowest < self.ratio * median:
            self._suspect, self._in_a_row = None, 0
            return ""
        if self._suspect != (found, rank):
            self._suspect, self._in_a_row, self._since, self._noted = (found, rank), 0, now, False
        self._in_a_row += 1
        if self._noted or self._in_a_row < NOTED_AFTER or now - self._since < NOTED_SECONDS:
            return ""
        self._noted = True
        return (
            f"{world.names([rank])} takes {slowest:.3g} s a step for {found}, the median rank {median:.3g} s; "
            "the others wait for it"
        )
