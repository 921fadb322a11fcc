"""`Monitor`: what watches a run and tells of it, so that the trainer says only what it does.

    enter(phase)          heartbeat and status: where this rank is
    awaiting, begin, end  one step: how long its batch took to come, whether steps have become slow
    log                   a row of the step: rates, phases of all ranks, who is waited for
    event, row, say       metrics.jsonl, status.json, TensorBoard, W&B, the line above the progress bar

The parts are in monitoring/ and ranks/; each can be used without the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from pretrain.config import TrainConfig
from pretrain.launchers import Launcher
from pretrain.monitoring.slow_steps import SlowSteps
from pretrain.monitoring.status_file import RunStatus
from pretrain.monitoring.telemetry import Telemetry
from pretrain.monitoring.throughput import Throughput, peak_tflops
from pretrain.precision import resolve_precision
from pretrain.ranks.heartbeat import Heartbeat
from pretrain.ranks.stragglers import PhaseTimes, StragglerWatch
from pretrain.ranks.world import World
from pretrain.tasks.base import Task
from pretrain.training_step import Step

Item = TypeVar("Item")


class Peak(NamedTuple):
    """What one rank can do at the best."""

    tflops: float
    source: str
    """Where the number comes from."""


class Monitor:
    """Collective when made: the ranks exchange where their beats are to be sent.

    Args:
        config: of the run.
        world: the ranks.
        launcher: who started this process as a rank, if that is known.
    """

    def __init__(self, config: TrainConfig, world: World, launcher: Launcher | None) -> None:
        directory = Path(config.output)
        self.world, self.launcher = world, launcher
        self.status = RunStatus(directory, config.total_steps, world.size, world.is_main)
        self.heartbeat = Heartbeat(world, config.distributed, directory, self.status)
        self.telemetry = Telemetry(directory, config.telemetry, config.total_steps, world.is_main, self.status)
        self.row, self.event, self.say = self.telemetry.row, self.telemetry.event, self.telemetry.say
        self.enter = self.heartbeat.enter
        self.phases, self._stragglers = PhaseTimes(world.device), StragglerWatch(config.telemetry.straggler_ratio)
        self._pace = SlowSteps(torch.get_num_threads() if world.device.type == "cpu" else 0)
        self._every = config.telemetry.every
        self._throughput = Throughput(1, 0.0, float("inf"), world.size)
        self._units, self._unit = 1, "samples"
        self._began = 0.0
        self._warned = False
        self.peak = ""
        """The peak that MFU refers to, in words."""

    def measure_rates(self, task: Task, peak: Peak) -> None:
        """Takes what a sample of `task` costs, and what a rank could do at the best."""
        self._units, self._unit = task.units_per_sample()
        self._throughput = Throughput(self._units, task.flops_per_sample(), peak.tflops, self.world.size)
        self.peak = f"{peak.tflops:.3f} TFLOP/s per rank ({peak.source})"

    def awaiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; the time until each is there counts as waiting for data, once its own step begins."""
        return self._throughput.awaiting(batches)

    def begin(self) -> None:
        """A step begins: its batch is there."""
        self._began = time.monotonic()
        self._throughput.start()
        self._pace.begin()

    def end(self, step: int, samples: int, micro_batches: int) -> None:
        """The step with this number is done, which took `samples` on all ranks, and `micro_batches` on this one."""
        self._throughput.stop(samples)
        self.phases.step(self._throughput.waited)
        if slow := self._pace.end(micro_batches):
            self.event(step, "slow steps", slow)

    def is_due(self, step: int) -> bool:
        """Whether a row is to be logged after this step; if not, `advance` moves the progress bar alone."""
        return step % self._every == 0

    def advance(self) -> None:
        """The progress bar moves by a step."""
        self.telemetry.advance()

    def log(self, at: int, step: Step, values: Mapping[str, float], samples: int, label: Mapping[str, int]) -> None:
        """A row of training. Collective, because phases are those of all ranks.

        Args:
            at: number of the step.
            step: what it gave.
            values: further values: what moves with the step, the gradient's norm.
            samples: consumed since the run began.
            label: of the round, where there are several.
        """
        rates = self._throughput.read(self._unit)
        spreads = self.phases.read(self.world)
        if straggler := self._stragglers.look(spreads, self.world, time.monotonic()):
            self.event(at, "straggler", straggler)
        self.row(
            "train",
            at,
            loss=step.loss,
            **values,
            **step.metrics,
            **{self._unit: samples * self._units},
            **rates,
            **label,
            phases={phase: spread._asdict() for phase, spread in spreads.items()},
        )
        shown = {f"{self._unit}/s": f"{rates[f'{self._unit}_per_second']:,.0f}", "mfu": f"{rates['mfu']:.1%}"}
        self.telemetry.advance(loss=f"{step.loss:.3f}", **shown, **{name: str(value) for name, value in label.items()})

    def saved(self, step: int) -> None:
        """The step's checkpoint is written. Says it once if a stop, which waits for both, outlasts the launcher."""
        seconds = time.monotonic() - self._began
        if self.launcher is not None and not self._warned and (text := self.launcher.too_short(seconds)):
            self.event(step, "grace", text)
            self._warned = True


def peak_of_rank(config: TrainConfig, device: torch.device) -> Peak:
    """The peak as `config` states it, or in the type that it trains in: of a known device, else measured."""
    if config.telemetry.peak_tflops is not None:
        return Peak(config.telemetry.peak_tflops, "telemetry.peak_tflops")
    return Peak(*peak_tflops(device, torch.bfloat16 if resolve_precision(config) == "bf16" else torch.float32))
