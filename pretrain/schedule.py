"""Schedules as pure functions of the step: nothing to save, nothing to resume. Those of the learning rate:

cosine   warm-up, then half a cosine from the peak to `final_ratio` of it           (PanGu-pi's training)
wsd      warm-up, stable, then a decay over the last `decay_fraction` of the run    (warmup-stable-decay)
constant warm-up, then the peak
onecycle half a cosine up from 1/25 of the peak, half a cosine down to `final_ratio`    (scene-text recognition)

Weight decay's coefficient and Muon's momentum may move too (`OptimizerConfig`), by the same counts of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

ONECYCLE_START = 1 / 25
"""Where `onecycle` begins, as a share of the peak; torch's OneCycleLR has the same default."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Shape of the learning rate over the run."""

    name: Literal["cosine", "wsd", "constant", "onecycle"] = "cosine"
    """Which schedule."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None takes `warmup_fraction` of the run."""
    warmup_fraction: float = 0.03
    """Warm-up as a fraction of the run, used when `warmup_steps` is None."""
    final_ratio: float = 0.1
    """Rate at the last step as a fraction of the peak (cosine, wsd, onecycle)."""
    decay_fraction: float = 0.2
    """wsd: fraction of the run, at its end, over which the rate decays."""
    decay_shape: Literal["linear", "sqrt"] = "sqrt"
    """wsd: shape of the decay; `sqrt` is 1 - sqrt(progress)."""

    def factor(self, step: int, total_steps: int) -> float:
        """Learning rate of `step` (counted from 0) as a fraction of the peak."""
        warmup = self.warmup_steps if self.warmup_steps is not None else round(self.warmup_fraction * total_steps)
        if self.name == "onecycle":
            warmup = max(1, warmup - 1)  # the last step of the warm-up has the peak, as in torch's OneCycleLR
            if step < warmup:
                rise = 0.5 * (1 - math.cos(math.pi * step / warmup))
                return ONECYCLE_START + (1 - ONECYCLE_START) * rise
        elif step < warmup:
            return (step + 1) / warmup
        if self.name == "constant":
            return 1.0
        if self.name == "wsd":
            begin = max(warmup, total_steps - round(self.decay_fraction * total_steps))
            if step < begin:
                return 1.0
            progress = _progress(step, begin, total_steps)
            shape = 1 - math.sqrt(progress) if self.decay_shape == "sqrt" else 1 - progress
        else:
            shape = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total_steps)))
        return self.final_ratio + (1 - self.final_ratio) * shape


class Hyperparameters(NamedTuple):
    """What moves from step to step."""

    rate: float
    """Learning rate, as a fraction of each group's peak."""
    decay: float
    """Coefficient of weight decay, as a fraction of the configured one."""
    momentum: float
    """Muon's."""


def fall(shape: Literal["linear", "cosine"], step: int, total_steps: int) -> float:
    """From 1 at step 0 to 0 at the last step, in equal parts or as half a cosine.

    Public trainers that race with Muon let its weight decay fall so (github.com/karpathy/nanochat has had both shapes).
    """
    progress = _progress(step, 0, total_steps)
    return 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def _progress(step: int, begin: int, end: int) -> float:
    """0 at `begin`, 1 at the last step before `end` and after it."""
    return min(1.0, (step - begin) / max(1, end - 1 - begin))
