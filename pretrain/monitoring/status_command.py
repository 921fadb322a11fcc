"""`python -m pretrain status RUN`: how a run is doing, at a glance, from its folder alone."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import psutil
from annotated_types import Ge, Le

from common.find_model import newest_checkpoints
from common.untrusted_files import read_json, typed
from pretrain.errors import ConfigurationError
from pretrain.monitoring.status_file import NAME, RUNNING

QUIET_SECONDS = 120.0
"""A status this old, from another host, is doubtful: ranks write every few seconds, also in long evaluations."""
EVENTS = 5
TAIL_BYTES = 1 << 20
"""Of metrics.jsonl, in which the last events are looked for."""
BAR = 30


@dataclass(frozen=True)
class StatusConfig:
    """Shows how a run is doing."""

    run: str
    """Run directory."""
    watch: bool = False
    """Show it again and again, until the run has ended or Ctrl-C."""
    seconds: float = 2.0
    """Pause between two looks with --watch."""
    json: bool = False
    """Print the file as it is, with `state` as judged now."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"seconds: must be greater than 0, got {self.seconds}")


@dataclass(frozen=True)
class StatusHead:
    """The fields of status.json that are always there."""

    state: str
    detail: str
    phase: str
    step: int
    total_steps: int
    ranks: int
    host: str
    process: Annotated[int, Ge(1), Le(2**31)]
    started: float
    written: float


def watch(config: StatusConfig) -> Iterator[str]:
    """The same, each text in the place of the one before where it is watched on a terminal."""
    clear = "\033[H\033[J" if config.watch and sys.stdout.isatty() and not config.json else ""
    return (f"{clear}{text}" for text in show(config))


def show(config: StatusConfig) -> Iterator[str]:
    """What to print, once or again and again.

    Raises:
        ConfigurationError: the folder holds no status, or one that cannot be read.
    """
    while True:
        status = read(Path(config.run))
        yield json.dumps(status, indent=1) if config.json else describe(status, Path(config.run))
        if not config.watch or status["state"] != RUNNING:
            return
        time.sleep(config.seconds)


def read(run: Path) -> dict[str, Any]:
    """The status file, with `state` corrected where the run's process is gone.

    Raises:
        ConfigurationError: there is none, or it is not a status.
    """
    path = run / NAME
    if not path.is_file():
        raise ConfigurationError(f"{path}: not found; give the folder of a run (`output` in its configuration)")
    status: dict[str, Any] = read_json(path, ConfigurationError)
    head = typed(StatusHead, status, f"{path}: not the status of a run", ConfigurationError)
    age = time.time() - head.written
    if head.state == RUNNING and head.host == socket.gethostname() and not _alive(head.process):
        detail = f"process {head.process} is gone without a word: it was killed"
        return status | {"state": "killed", "detail": detail}
    if head.state == RUNNING and age > QUIET_SECONDS:
        return status | {"state": "silent", "detail": f"nothing was written for {timedelta(seconds=int(age))}"}
    return status


def _alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE  # dead, and nobody has asked how it died
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # somebody else's, but there


def describe(status: Mapping[str, Any], run: Path) -> str:
    """A dozen lines."""
    step, total = status["step"], status["total_steps"]
    done = step / max(1, total)
    age = time.time() - status["written"]
    lines = [
        f"{run}: {status['state']}" + f" ({status['detail']})" * bool(status["detail"]),
        f"  [{'#' * round(done * BAR):{BAR}}] step {step:,} of {total:,} ({done:.1%}), {_remaining(status)}",
        f"  phase       {status['phase']}; {status['ranks']} ranks, rank 0 on {status['host']} "
        f"(process {status['process']}); written {age:.0f} s ago",
        *_numbers(status),
        *_ranks(status),
        *_checkpoints(run),
    ]
    if events := _events(run):
        lines += [
            "  what happened last",
            *(f"    step {row['step']}: {row['event']}: {row['detail']}" for row in events),
        ]
    return "\n".join(lines)


def _remaining(status: Mapping[str, Any]) -> str:
    elapsed = status["written"] - status["started"]
    steps = status["step"] - status.get("first_step", 0)
    if status["state"] != RUNNING or steps < 1:
        return f"{timedelta(seconds=int(elapsed))} in this process"
    rest = (status["total_steps"] - status["step"]) * elapsed / steps
    return f"{timedelta(seconds=int(elapsed))} in this process, about {timedelta(seconds=int(rest))} to go"


def _numbers(status: Mapping[str, Any]) -> Iterator[str]:
    if row := status.get("last_train"):
        rates = [
            f"{name.removesuffix('_per_second')}/s {value:,.0f}" for name, value in row.items() if "_per_sec" in name
        ]
        shown = [f"loss {_number(row['loss'])}", f"lr {row['lr']:.2e}", f"gradient {_number(row['grad_norm'])}", *rates]
        yield f"  training    {', '.join(shown)}, MFU {row['mfu']:.1%}, waiting for data {row['data_wait']:.1%}"
        phases = [
            f"{name} {spread['median']:.3g}"
            + f" (rank {spread['rank']}: {spread['slowest']:.3g})" * (status["ranks"] > 1)
            for name, spread in row["phases"].items()
        ]
        yield f"  a step      {', '.join(phases)} s: the median rank" + " (and the slowest)" * (status["ranks"] > 1)
    if row := status.get("last_valid"):
        yield f"  validation  loss {_number(row['loss'])} at step {row['step']:,}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"  # non-finite numbers are words in JSON


def _ranks(status: Mapping[str, Any]) -> Iterator[str]:
    if heard := status.get("heard"):
        longest = ", ".join(f"rank {one['rank']} on {one['host']} {one['seconds']:g} s" for one in heard[:3])
        yield f"  heard of    longest ago: {longest}"


def _checkpoints(run: Path) -> Iterator[str]:
    if found := newest_checkpoints(run):
        age = timedelta(seconds=int(time.time() - found[0].stat().st_mtime))
        yield f"  checkpoint  {found[0].name}, {age} old; {len(found)} kept"


def _events(run: Path) -> list[dict[str, Any]]:
    """The last events of metrics.jsonl; lines that are no rows were cut off by a kill."""
    found = []
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["kind"] == "event":
            found.append(row)
    return found[-EVENTS:]
