"""What the walk-throughs `quickstart`, `ocr` and `vision` share: their options, and how they call our commands.

Each is a list of ordinary commands, one process each, printed before it runs; done steps are skipped
(`commands_once.py`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pretrain.quickstarts.commands_once import deepspeed_launcher

PYTHON = (sys.executable, "-m")
"""Begins a command of one of the rooms."""


@dataclass(frozen=True)
class Walkthrough:
    """Options of every walk-through."""

    output: str = ""
    """Folder for everything it makes."""
    config: str = ""
    """Training configuration."""
    steps: int | None = None
    """Training steps; None takes the configuration's."""
    ranks: int = 2
    """Processes that train together on this machine."""

    COUNTS: ClassVar[tuple[str, ...]] = ("steps", "ranks")
    """Options that must be at least 1."""

    def __post_init__(self) -> None:
        for name in self.COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if not Path(self.config).is_file():
            raise ValueError(f"config: there is no file {self.config}")


def train_command(config: Walkthrough, run: Path, **task: Any) -> list[str]:
    """`deepspeed pretrain/train.py` on the configured ranks, with fields of the task overridden."""
    overrides = [word for name, value in task.items() for word in (f"--task.{name}", json.dumps(value))]
    steps = [] if config.steps is None else ["--steps", str(config.steps)]
    return [
        *deepspeed_launcher(config.ranks),
        *("pretrain/train.py", "--config", config.config, "--output", str(run), *overrides, *steps),
    ]


def option(name: str, values: list[str]) -> list[str]:
    """A list option of a command, left out when it is empty."""
    return [f"--{name}", *values] if values else []
