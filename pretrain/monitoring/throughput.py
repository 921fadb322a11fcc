"""Tokens per second, TFLOP/s and MFU, by one stated formula.

    MFU = (training FLOPs of a sample x samples per second on one rank) / peak FLOP/s of one rank

Training FLOPs are the task's own count: matrix products of forward and backward (3 x forward), attention scores
included, embedding look-ups, recomputation and padding not. The peak is a data-sheet number for known accelerators and
a measured matrix product everywhere else, taken on all ranks at the same time, because they share the machine.

    data_wait = seconds that this rank waited for batches / (those + the seconds of its training steps)

A step begins when its batch is there, so rates are those of training alone; data_wait says what the run lost beside it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from deepspeed.accelerator import get_accelerator

from pretrain.monitoring.device_peaks import known_peak

Item = TypeVar("Item")


def peak_tflops(device: torch.device, dtype: torch.dtype, seconds: float = 0.4, size: int = 1024) -> tuple[float, str]:
    """Peak TFLOP/s of one rank and where the number comes from."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        if (known := known_peak(name)) is not None:
            return known, f"data sheet of {name}"
    if device.type != "cpu":
        size *= 8
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        left @ right
        get_accelerator().synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12, f"measured: {size} x {size} product in {str(dtype).removeprefix('torch.')}"


@dataclass
class Throughput:
    """A stopwatch over training steps that leaves out validation, checkpoints and evaluations."""

    units_per_sample: int
    flops_per_sample: float
    peak_tflops: float
    world_size: int
    waited: float = 0.0
    """Seconds that this rank waited for the batch of the latest step."""
    _waits: deque[float] = field(default_factory=deque)
    """Seconds waited for batches that are there and whose steps have not begun."""
    _samples: int = 0
    _seconds: float = 0.0
    _waited: float = 0.0
    _started: float | None = None

    def awaiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; the time until each is there counts as waiting for data, once its own step begins."""
        self._waits.clear()
        began = time.perf_counter()
        for batch in batches:
            self._waits.append(time.perf_counter() - began)
            yield batch
            began = time.perf_counter()

    def start(self) -> None:
        """The training step of the next batch begins."""
        self.waited = self._waits.popleft() if self._waits else 0.0
        self._waited += self.waited
        self._started = time.perf_counter()

    def stop(self, samples: int) -> None:
        """The step has processed `samples` on all ranks together."""
        assert self._started is not None, "stop() without start()"
        self._seconds += time.perf_counter() - self._started
        self._samples += samples

    def read(self, unit: str) -> dict[str, float]:
        """Rates since the last reading; resets the window."""
        samples_per_second = self._samples / self._seconds if self._seconds else 0.0
        tflops = samples_per_second * self.flops_per_sample / self.world_size / 1e12
        wait = self._waited / (self._waited + self._seconds) if self._waited else 0.0
        self._samples, self._seconds, self._waited = 0, 0.0, 0.0
        return {
            f"{unit}_per_second": samples_per_second * self.units_per_sample,
            "tflops": tflops,
            "mfu": tflops / self.peak_tflops,
            "data_wait": wait,
        }
