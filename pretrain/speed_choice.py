"""What `auto` means for `engine.precision` and `engine.compile`: measured on this machine, where that is worth it.

    on an accelerator        bf16; decoders compiled, if the arithmetic of the run takes longer than compiling repays
    on a CPU, short run      fp32, eager: nothing is measured
    on a CPU, long run       a micro-batch of this task, forward and backward, in each setting; the fastest is taken

bf16 is measured only on processors that have instructions for it (AVX512-BF16, AMX): elsewhere it is emulated, and
slower. Compiling is tried only if COMPILE_SAVES of what is left of the run is more than the COMPILE_SECONDS it takes.

All ranks measure at the same time, because they share the machine; rank 0's numbers count. The choice is kept in
RUN/speed_choice.json, and a run that has a checkpoint is continued with it: it is never measured twice, so resuming
stays exact. What it costs: about a second, and the time to compile where that is tried.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from deepspeed.accelerator import get_accelerator

from common.atomic_files import write_whole
from common.find_model import newest_checkpoints
from common.untrusted_files import read_json
from pretrain.config import TrainConfig
from pretrain.errors import ConfigurationError
from pretrain.precision import usual_precision
from pretrain.ranks.world import World
from pretrain.tasks.base import Task, TaskModule
from pretrain.transfers import on_device

NAME = "speed_choice.json"
WORTH_SECONDS = 60.0
"""A run whose arithmetic alone takes less than this, at the machine's peak, is not measured."""
COMPILE_SECONDS = 60.0
"""What compiling a model's blocks takes, about."""
COMPILE_SAVES = 0.2
"""Share of a step that compiling saves, about: 4,000 tokens/s became 5,100 in fp32, 5,600 became 7,700 in bf16."""
FASTER = 0.97
"""A setting must take at most this share of another's time to be preferred to it."""
REPETITIONS = 3
"""Timed passes of a setting, the same number on every rank, because a task's loss may be collective."""


@dataclass(frozen=True)
class SpeedChoice:
    """Precision and compilation of a run, and why."""

    precision: Literal["fp32", "bf16"]
    compile: bool
    reason: str = ""
    """For the audit; empty where the configuration left nothing open."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of one micro-batch, forward and backward, in each setting that was measured: "bf16, compiled"."""

    def applied(self, config: TrainConfig) -> TrainConfig:
        """The configuration with nothing left open."""
        return replace(config, engine=replace(config.engine, precision=self.precision, compile=self.compile))

    def describe(self) -> dict[str, str]:
        """A row of the audit table, where something was left open."""
        return {"speed": self.reason} if self.reason else {}


Measure = Callable[[TrainConfig, World, str, bool], float]
"""Seconds of one micro-batch in a precision, compiled or not.

Raises:
    ConfigurationError: the task cannot be trained like that.
    RuntimeError: it cannot be compiled here.
"""


def settle(config: TrainConfig, world: World, peak_tflops: float, measure: Measure | None = None) -> SpeedChoice:
    """What a run trains in, and the same on every rank. Collective.

    Args:
        config: the run; what it sets itself is kept.
        world: the ranks.
        peak_tflops: of one rank, in fp32 on a CPU.
        measure: how a setting is measured; `seconds_of_micro_batch` unless told otherwise.
    """
    engine = config.engine
    if engine.precision != "auto" and engine.compile != "auto":
        return SpeedChoice(engine.precision, engine.compile is True)
    (kept,) = world.gather(_kept(config) if world.is_main else None)[:1]
    if kept is not None:
        choice = SpeedChoice(**kept)
        return _as_asked(config, replace(choice, reason=f"{choice.reason}, chosen when the run began"))
    arithmetic = _arithmetic_seconds(config, world, world.gather(peak_tflops)[0])  # measured, so ranks differ
    if get_accelerator().device_name() != "cpu":
        pays = arithmetic * COMPILE_SAVES > COMPILE_SECONDS
        choice = SpeedChoice(usual_precision(), config.task.compiled_on_accelerators and pays, "auto on an accelerator")
    elif arithmetic < WORTH_SECONDS:
        choice = SpeedChoice("fp32", False, f"auto: {arithmetic:.2g} s of arithmetic are not worth measuring")
    else:
        choice = _measured(config, world, measure or seconds_of_micro_batch)
    choice = SpeedChoice(**world.gather(asdict(choice))[0])
    if world.is_main:
        write_whole(Path(config.output) / NAME, json.dumps(asdict(choice), indent=1))
    return _as_asked(config, choice)


def _kept(config: TrainConfig) -> dict[str, Any] | None:
    """The choice of the run that is to be continued; of one from before there were choices, what it was."""
    run = Path(config.output)
    if not (config.checkpoint.resume and newest_checkpoints(run)):
        return None
    if not (run / NAME).is_file():
        return asdict(SpeedChoice(usual_precision(), False, "auto"))
    content = read_json(run / NAME, ConfigurationError)
    if (
        not isinstance(content, dict)
        or content.get("precision") not in ("fp32", "bf16")
        or not isinstance(content.get("compile"), bool)
    ):
        raise ConfigurationError(f"{run / NAME}: not a choice; set engine.precision and engine.compile instead of auto")
    return {name: content[name] for name in asdict(SpeedChoice("fp32", False)) if name in content}


def _as_asked(config: TrainConfig, choice: SpeedChoice) -> SpeedChoice:
    """The choice, but for what the configuration sets itself."""
    precision = choice.precision if config.engine.precision == "auto" else config.engine.precision
    compiled = choice.compile if config.engine.compile == "auto" else config.engine.compile is True
    return replace(choice, precision=precision, compile=compiled)


def _arithmetic_seconds(config: TrainConfig, world: World, peak_tflops: float) -> float:
    """What the run takes at the least."""
    flops = config.batch.samples(config.total_steps) * config.task.flops_per_sample()
    return flops / (peak_tflops * 1e12 * world.size)


def _measured(config: TrainConfig, world: World, measure: Measure) -> SpeedChoice:
    """The fastest of: eager in each precision, then the faster of these compiled, if the run is long enough."""
    asked, seconds, notes = config.engine, {}, []
    precisions = [asked.precision] if asked.precision != "auto" else ["fp32", *(["bf16"] if has_bf16() else [])]
    agreed = lambda own: world.gather(own)[0]  # noqa: E731  # rank 0's, so that all go on alike
    eager = asked.compile is not True

    def look(precision: str, compiled: bool) -> float:
        name = precision + ", compiled" * compiled
        try:
            own: float | str = measure(config, world, precision, compiled)
        except (ConfigurationError, RuntimeError) as error:
            own = (str(error).splitlines() or [type(error).__name__])[0]
        result = agreed(own)
        if isinstance(result, str):
            notes.append(f"{name} cannot be used: {result}")
            return float("inf")
        seconds[name] = result
        return float(result)

    best, fastest = precisions[0], look(precisions[0], not eager)
    for precision in precisions[1:]:
        if (taken := look(precision, not eager)) < FASTER * fastest:
            best, fastest = precision, taken
    compiled = not eager
    if asked.compile == "auto":
        left = fastest * config.batch.samples(config.total_steps) / (config.batch.micro_size * world.size)
        if left * COMPILE_SAVES > COMPILE_SECONDS:
            compiled = look(best, True) < FASTER * fastest
        else:
            notes.append(f"{left:.0f} s of training would not repay compiling")
    slowest = max(seconds.values(), default=1.0)
    ratios = [f"{name.replace(',', '')} {slowest / taken:.2f}x" for name, taken in seconds.items()]
    return SpeedChoice(best, compiled, "; ".join(["auto, measured: " + ", ".join(ratios), *notes]), seconds)  # type: ignore[arg-type]


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself."""
    found = (
        getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(ask() for ask in found)


def seconds_of_micro_batch(config: TrainConfig, world: World, precision: str, compiled: bool) -> float:
    """Forward and backward of the run's first micro-batch in a model of its own; the quickest of a few passes."""
    task: Task = config.task
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.random.fork_rng(devices=[]):
        model = task.build_model(config.seed)
        task.prepare_model(model, config.engine.activation_checkpointing, compiled)
        module = TaskModule(task, model.to(world.device, dtype)).train()
        sources, _ = task.training_sources()
        source = sources[0]
        samples = [source.sample(index % len(source)) for index in range(config.batch.micro_size)]
        batch = on_device(task.collate(samples), world.device)
        if dtype == torch.bfloat16:
            task.audit(model.eval(), batch)  # it may refuse
            model.train()
        passes = []
        for _ in range(1 + REPETITIONS):
            began = time.perf_counter()
            module(batch).total.backward()
            get_accelerator().synchronize()
            passes.append(time.perf_counter() - began)
            module.zero_grad(set_to_none=True)
    del module, model
    gc.collect()
    return min(passes[1:])
