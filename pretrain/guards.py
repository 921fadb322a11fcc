"""A guard around the loop: when the numbers have gone wrong so far that a run must go back.

    non-finite gradients                    the update is skipped; several in a row: back to the last checkpoint
    a loss far above its recent course      noted; several in a row, and if asked for: back to the last checkpoint

After going back, the data continue behind the batches that led astray, so the run does not meet them again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pretrain.config import GuardConfig

WINDOW = 100
"""Losses that make the recent course."""
REPLAYED = 4 * WINDOW
"""Losses that bring a continued run to the course it had."""
FEWEST = 20
"""Losses that are needed before one can stand out."""
SMALLEST_SIGMA = 0.01
"""The robust standard deviation counts as at least this share of the median: a flat course is no excuse for noise."""
NORMAL_QUARTILE = 0.6745
"""Upper quartile of the standard normal distribution, in standard deviations."""


class Verdict(NamedTuple):
    """What the guard says about a step."""

    event: tuple[str, str] | None = None
    """Its kind and detail, where something is to be noted."""
    roll_back: bool = False
    """Whether to go back to the last checkpoint."""
    give_up: str = ""
    """Why the run should end instead: it is time to go back, but `max_rollbacks` are used up."""


class DivergenceGuard:
    """Counts non-finite and spiking steps in a row and says when to go back.

    A step *spikes* if its loss lies more than `spike_sigmas` robust standard deviations, (q75 - median) / 0.6745, above
    the median of the last 100 losses that did not. It is a pure function of the losses: all ranks, and a run that was
    continued, come to the same verdicts (which is why losses are rounded as they are recorded). What it costs: sorting
    100 numbers per step.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.rollbacks = 0
        self.non_finite = self.spikes = 0
        """Steps of either kind in a row until now."""
        self._course: deque[float] = deque(maxlen=WINDOW)

    @property
    def watching(self) -> bool:
        """Whether spikes may still lead back: no checkpoint should be made of these steps."""
        return self.config.spike_rollback and self.spikes > 0

    def begin(self, losses: Iterable[float], non_finite: int = 0, spikes: int = 0) -> None:
        """Starts with the course of a run's last losses, oldest first, and with the steps in a row counted by then."""
        self._course.clear()
        for loss in losses:
            self._follow(loss)
        self.non_finite, self.spikes = non_finite, spikes

    def look(self, data_step: int, applied: bool, loss: float) -> Verdict:
        """The verdict on the step that took batch `data_step`: whether its update was applied, and its mean loss."""
        config = self.config
        self.non_finite = 0 if applied else self.non_finite + 1
        if not applied:
            noted = ("skip", f"non-finite gradients in batch {data_step}")
            return self._verdict(noted, self.non_finite, config.max_consecutive_skips, "non-finite gradients")
        usual = self._follow(loss)
        if usual is None:
            return Verdict()
        noted = ("spike", f"loss {loss:.4g} in batch {data_step}, usual until now: {usual:.4g}")
        if config.spike_rollback:
            return self._verdict(noted, self.spikes, config.spike_steps, "a loss far above its course")
        if self.spikes < config.spike_steps:
            return Verdict(noted if self.spikes == 1 else None)
        self.begin([])  # this is the course now
        return Verdict(("spike", f"the loss has risen from {usual:.4g} to {loss:.4g} and stays there"))

    def _follow(self, loss: float) -> float | None:
        """Takes one loss into the course; if it spikes, counts it and returns the median instead."""
        if not math.isfinite(loss):
            return None
        loss = float(np.float32(loss))
        if self.config.spike_sigmas is not None and len(self._course) >= FEWEST:
            ascending = sorted(self._course)
            median, upper = ascending[len(ascending) // 2], ascending[len(ascending) * 3 // 4]
            sigma = max((upper - median) / NORMAL_QUARTILE, SMALLEST_SIGMA * abs(median))
            if loss > median + self.config.spike_sigmas * sigma:
                self.spikes += 1
                return median
        self.spikes = 0
        self._course.append(loss)
        return None

    def _verdict(self, noted: tuple[str, str], in_a_row: int, limit: int, what: str) -> Verdict:
        if in_a_row < limit:
            return Verdict(noted)
        if self.rollbacks == self.config.max_rollbacks:
            return Verdict(
                noted,
                give_up=f"{what} in {in_a_row} steps in a row, also after {self.rollbacks} rollbacks; "
                "lower optimizer.lr, check the data of these steps with `python -m data_pipeline replay`, "
                "or raise guards.max_rollbacks",
            )
        self.rollbacks += 1
        return Verdict(noted, roll_back=True)
