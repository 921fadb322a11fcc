"""The step-0 self-audit: what this run really is, checked where it can be, printed as one table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from pretrain.arithmetic import describe_arithmetic
from pretrain.checkpoints.checkpoint import Position
from pretrain.config import OptimizerConfig, TrainConfig
from pretrain.engine import Engine
from pretrain.precision import describe_gradients, resolve_precision
from pretrain.ranks.world import World


def audit(
    config: TrainConfig, engine: Engine, world: World, position: Position, task_rows: dict[str, str], peak: str
) -> dict[str, str]:
    """Rows of the table. Collective through `task_rows`, which the caller got from the task on every rank.

    Raises:
        RuntimeError: the optimizer does not hold what the parameter groups say.
    """
    rows = {
        "world": f"{world.size} rank(s) on {get_accelerator().device_name()}, ZeRO stage {engine.stage}, "
        f"{torch.get_num_threads()} thread(s) per rank",
        "precision": resolve_precision(config) + (", compiled" if config.engine.compile else ""),
        "gradients": describe_gradients(engine.wrapped),
        "arithmetic": describe_arithmetic(get_accelerator().device_name()),
        "batch": f"{config.batch.largest} samples = {world.size} ranks x {config.batch.micro_size} x "
        f"{engine.accumulation} micro-batches ({config.batch.largest * engine.task.units_per_sample()[0]:,} "
        f"{engine.task.units_per_sample()[1]})"
        + (f", the largest of {describe_sizes(config.batch.sizes)}" if config.batch.ramp else ""),
        "learning rate": f"peak {engine.peak_lr:.4g}" + (describe_rule(config.optimizer)),
        "parameters": f"{engine.parameters:,}",
        "optimizer": type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__name__,
    }
    course = config.optimizer.weight_decay_schedule
    for planned, actual, peak_of in zip(engine.groups, engine.optimizer.param_groups, engine.peaks, strict=True):
        numel = sum(parameter.numel() for parameter in planned.parameters)
        rows[f"group {planned.name}"] = (
            f"{len(planned.parameters)} tensors, lr {peak_of['lr']:.3g}, weight decay {peak_of['weight_decay']:g}"
            + (f" ({course})" if planned.weight_decay and course != "constant" else "")
            + (", Muon" if planned.use_muon else "")
        )
        if not math.isclose(peak_of["weight_decay"], planned.weight_decay):
            raise RuntimeError(
                f"group {planned.name} should have weight decay {planned.weight_decay}, the optimizer has "
                f"{peak_of['weight_decay']}"
            )
        held = sum(parameter.numel() for parameter in actual["params"]) * (world.size if engine.stage else 1)
        if engine.stage < 3 and held < numel:
            raise RuntimeError(f"group {planned.name}: {numel} parameters planned, the optimizer holds {held}")
    rows["peak"] = peak
    rows["resume"] = f"from step {position.step}" if position.step else "fresh start"
    return rows | task_rows


def describe_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Global batches of a run: of which size at first, and from which number on of which others."""
    (_, size), *later = sizes
    return f"{size}" + "".join(f", from batch {first} on {other}" for first, other in later)


def describe_rule(config: OptimizerConfig) -> str:
    """By which rule the learning rate was found, where none was given."""
    if config.lr is not None:
        return ""
    return " by the width rule" if config.name == "muon" else " by the batch rule"


def publish(rows: dict[str, str], directory: Path) -> str:
    """Writes audit.json and returns the table as text."""
    (directory / "audit.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    width = max(len(name) for name in rows)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows.items()]
    return "\n".join(["step-0 audit", *lines])
