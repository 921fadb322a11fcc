"""What `plan`, `bench` and `plan --hours` take besides a run's configuration.

Imports no torch, so that --help comes at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pretrain.errors import ConfigurationError

Kind = Literal[
    "b200-180", "h200-141", "h100-80", "h100-pcie-80", "h800-80", "h20-96", "a100-40", "a100-80", "a800-80", "a10-24",
    "l40s-48", "l40-48", "l4-24", "4090-24", "cpu",
]  # fmt: skip
"""Devices that a plan knows: their data sheets are in accelerators.py."""


@dataclass(frozen=True)
class PlanConfig:
    """What the run would have."""

    nodes: int = 1
    """Machines."""
    gpus: int = 1
    """Ranks on each machine."""
    gpu: Kind = "a100-80"
    """Device of one rank; cpu plans fp32 ranks on this machine."""
    memory_gb: float | None = None
    """Memory of one rank, in 10^9 bytes; None takes the data sheet's, for cpu an equal share of this machine's."""
    mfu: float = 0.4
    """Model FLOPs utilisation that is assumed: the share of the peak that a run reaches."""
    headroom: float = 0.1
    """Share of the memory that is assumed to be lost to the allocator, kernels and the collective library."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.mfu <= 1:
            raise ConfigurationError(f"mfu is {self.mfu}; it must be greater than 0 and at most 1")
        if not 0 <= self.headroom < 1:
            raise ConfigurationError(f"headroom is {self.headroom}; it must be at least 0 and below 1")

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.nodes * self.gpus


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and for how long."""

    ranks: int | None = None
    """Processes on this machine; None takes its accelerators, or 2 where there are none."""
    warmup_steps: int = 3
    """Optimizer steps of a candidate before the clock counts."""
    timed_steps: int = 20
    """Steps that are timed, at most."""
    timed_seconds: float = 15
    """Seconds after which timing ends earlier, with two steps at least."""
    candidate_seconds: float = 300
    """Limit for one candidate, its start included."""
    total_seconds: float = 1800
    """Limit for all; no candidate is started after it."""
    results: str | None = None
    """Folder for tables, plot, winner and what is measured so far; None puts it beside the run's: OUTPUT_bench."""

    def __post_init__(self) -> None:
        smallest = {"ranks": 1, "warmup_steps": 1, "timed_steps": 2}
        for name, least in smallest.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigurationError(f"{name} is {value}; it must be at least {least}")
        for name in ("timed_seconds", "candidate_seconds", "total_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(PlanConfig):
    """What is at hand."""

    hours: float
    """Wall-clock hours of the whole run."""
    tokens: str | None = None
    """Distinct tokens of text, such as 300M or 10B; None counts those of `shards`, or takes as many as are needed."""
    shards: list[str] = field(default_factory=list)
    """Directories of token shards: their tokens are counted, their tokenizer sets the vocabulary."""
    parameters: str | None = None
    """Size of the model, such as 125M; None takes the one with the lowest expected loss."""
    reserve: float = 0.05
    """Share of the time that is assumed to go to the start, validation and checkpoints."""
    price: float | None = None
    """What one device costs for an hour, in any currency; None names device hours only."""
    output: str = "runs/mine"
    """Folder of the run that the configuration describes."""
    write: str | None = None
    """Where to write the configuration (.yaml); the model's shape goes beside it. None only prints."""
    overwrite: bool = False
    """Replace files that exist."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hours > 0:
            raise ConfigurationError(f"hours is {self.hours}; it must be greater than 0")
        if not 0 <= self.reserve < 1:
            raise ConfigurationError(f"reserve is {self.reserve}; it must be at least 0 and below 1")
        if self.price is not None and not self.price >= 0:
            raise ConfigurationError(f"price is {self.price}; it must be at least 0")
        if self.write is not None and Path(self.write).suffix not in (".yaml", ".yml"):
            raise ConfigurationError(f"write is {self.write!r}; it must name a file that ends in .yaml")
        for name in ("tokens", "parameters"):
            if (value := getattr(self, name)) is not None:
                parse_count(value, name)


def parse_count(text: str, name: str) -> float:
    """`10B`, `1.5T`, `300M`, `4k` or `5000000` as a number.

    Raises:
        ConfigurationError: it is none, or not greater than 0.
    """
    units = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
    plain = str(text).strip().replace("_", "")
    if re.fullmatch(r"\d{1,3}(,\d{3})+", plain):  # as this command prints them; 2,5 could mean two things
        plain = plain.replace(",", "")
    scale = units.get(plain[-1:].lower(), 1.0)
    try:
        value = float(plain[:-1] if scale > 1 else plain) * scale
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigurationError(f"{name} is {text!r}; it must be a number greater than 0, such as 300M or 10B")
    return value
