"""What a run that is only measured does besides training: says how much memory it took, and ends in time.

It is an evaluation hook, which the trainer calls after every step, outside of the seconds that it counts. So the bench
needs no loop of its own and nothing in the trainer, and no run ends with a checkpoint that nobody wants.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn

from pretrain.hooks import EvaluationHook

NAME = "bench"
LEAST_TIMED = 2


class BenchHook(EvaluationHook):
    """Logs the peak memory after every step; after the last one, ends the process of every rank with exit code 0.

    Args:
        warmup_steps: steps that do not count.
        timed_steps: steps that count, at most.
        timed_seconds: time after which no further step is begun, two steps at least.
    """

    every = 1

    def __init__(self, warmup_steps: int, timed_steps: int, timed_seconds: float) -> None:
        self.warmup_steps, self.timed_steps, self.timed_seconds = warmup_steps, timed_steps, timed_seconds
        self._began = 0.0

    def __call__(
        self, *, step: int, model: nn.Module, run_directory: Path, context: dict[str, Any]
    ) -> dict[str, dict[str, float]]:
        """Returns {"bench": {"peak_memory": bytes of the rank that took the most so far}}. Collective."""
        now, timed = time.monotonic(), step - self.warmup_steps
        if timed <= 0:
            self._began = now
        found: list[tuple[int, float]] = [(0, 0.0)] * dist.get_world_size()
        dist.all_gather_object(found, (peak_memory(), now - self._began))
        elapsed = found[0][1]  # rank 0's clock decides, so that all leave after the same step
        if timed >= self.timed_steps or (timed >= LEAST_TIMED and elapsed >= self.timed_seconds):
            # The step's own row is written; the memory stands in that of the step before. Nothing else shall happen:
            # no checkpoint, and no orderly end, which takes longer than all the steps.
            os._exit(0)
        return {NAME: {"peak_memory": float(max(peak for peak, _ in found))}}


def peak_memory() -> int:
    """Bytes that this rank took at most: reserved on its accelerator, or resident where there is none."""
    if get_accelerator().device_name() == "cpu":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return int(get_accelerator().max_memory_reserved())
