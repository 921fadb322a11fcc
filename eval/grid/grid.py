"""A grid of training runs: variants of one configuration times seeds. Cells that are done are not done again.

    grid.yaml --> output/VARIANT/seedK/            one run of pretrain/train.py each, resumed if it was cut off
                  output/VARIANT/seedK/cell.json   what was measured on it
                  --> a report, which each kind of grid writes in its own way

The same seed gives every variant the same data order and the same shared initial weights, so differences are paired.
Ablations, ladders and shape sweeps are grids; they differ in what they measure and in what they write.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from common.atomic_files import write_whole
from common.config_file import build_dataclass, elsewhere
from common.errors import InputError
from common.untrusted_files import read_json, read_yaml

SECONDS_BETWEEN_LOOKS = 2.0


class GridError(InputError, ValueError):
    """The grid cannot be run as written; the message names the field or the cell."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What every grid's YAML has."""

    title: str
    """Heading of the report."""
    config: str
    """Training configuration that all cells share."""
    output: str
    """Folder of the cells."""
    report: str
    """Markdown file to write; plots go into a folder of the same name beside it."""
    seeds: list[int]
    """Seeds; every variant runs with each (see `seeds_of`)."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Variant name -> overrides of the training configuration by dotted name."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Overrides of the training configuration for all cells."""
    launcher: list[str] = field(default_factory=list)
    """Command that starts pretrain/train.py, such as [deepspeed, --num_accelerators, "2"]; empty takes plain Python."""
    jobs: int = 1
    """Cells trained at the same time."""
    threads: int | None = None
    """Threads per process (OMP_NUM_THREADS); None leaves it to torch."""
    notes: str = ""
    """Markdown for the top of the report."""

    @property
    def all_variants(self) -> dict[str, dict[str, Any]]:
        """`variants`; a kind of grid may make its own instead."""
        return self.variants

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds that a variant runs with; the same for all, unless a kind of grid says otherwise."""
        return self.seeds


GridType = TypeVar("GridType", bound=Grid)


@dataclass(frozen=True)
class Cell:
    """One variant with one seed."""

    variant: str
    seed: int
    directory: Path
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    """Those of pretrain/train.py in it."""
    identity: dict[str, Any]
    """What decides the result: the shared configuration and the overrides, not how the process is started."""

    @property
    def result(self) -> Path:
        """The cell's measurements."""
        return self.directory / "cell.json"


def read_grid(path: Path, kind: type[GridType]) -> GridType:
    """Reads the YAML of a grid and checks its fields.

    Raises:
        GridError: naming the file and the field at fault.
    """
    return build_grid(read_mapping(path), path, kind)


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML file's mapping. Raises `GridError` when there is none."""
    if not path.is_file():
        raise GridError(f"{path}: there is no such file{elsewhere(path)}")
    content = read_yaml(path, GridError)
    if not isinstance(content, dict):
        raise GridError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


def build_grid(content: Mapping[str, Any], path: Path, kind: type[GridType]) -> GridType:
    """A grid from its fields; `path` is named in the errors.

    Raises:
        GridError: a field is missing, unknown or has a value that cannot be.
    """
    grid = build_dataclass(kind, content, str(path), GridError)
    if not Path(grid.config).is_file():
        raise GridError(f"{path}: config {grid.config} is not there{elsewhere(grid.config)}")
    return grid


def cells(grid: Grid) -> list[Cell]:
    """All cells, seed by seed, so that an interrupted grid has whole comparisons first."""
    seeds = dict.fromkeys(seed for variant in grid.all_variants for seed in grid.seeds_of(variant))
    return [
        make_cell(grid, variant, seed)
        for seed in seeds
        for variant in grid.all_variants
        if seed in grid.seeds_of(variant)
    ]


def make_cell(grid: Grid, variant: str, seed: int) -> Cell:
    """One cell of the grid, whether it has been trained or not."""
    directory = Path(grid.output) / variant / f"seed{seed}"
    settings = {**grid.overrides, **grid.all_variants[variant], "seed": seed, "output": str(directory)}
    overrides = [part for name, value in settings.items() for part in (f"--{name}", _as_argument(value))]
    arguments = ("--config", grid.config, *overrides)
    command = (*(grid.launcher or [sys.executable]), "pretrain/train.py", *arguments)
    identity = {"config": read_yaml(Path(grid.config), GridError), "overrides": settings}
    return Cell(variant, seed, directory, command, arguments, identity)


def _as_argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def planned_steps(cell: Cell) -> int:
    """Steps of the cell's training, later rounds included."""
    rounds = {"count": 1, "keep": 0.5, **cell.identity["config"].get("rounds", {})}
    overrides = cell.identity["overrides"]
    for name in rounds:
        rounds[name] = overrides.get(f"rounds.{name}", rounds[name])
    first = int(overrides.get("steps", cell.identity["config"]["steps"]))
    return first + (int(rounds["count"]) - 1) * round(float(rounds["keep"]) * first)


def is_trained(cell: Cell) -> bool:
    """Whether the run has a checkpoint of its last step.

    Raises:
        GridError: the directory holds a run that was started with other settings.
    """
    check_settings(cell)
    return (cell.directory / "checkpoints" / f"step_{planned_steps(cell):08d}").is_dir()


def check_settings(cell: Cell) -> None:
    """Raises `GridError` where the cell's directory holds a run that was started with other settings."""
    settings = cell.directory / "settings.json"
    if settings.is_file() and read_json(settings, _unreadable) != cell.identity:
        raise GridError(
            f"{cell.directory} was trained with other settings ({settings.name} differs); remove it, or give the "
            "variant another name"
        )


def _unreadable(problem: str) -> GridError:
    return GridError(f"{problem}; remove the file, and what it held is done again")


def train(cell: Cell, threads: int | None) -> None:
    """Trains (or goes on training) one cell; its output goes to train.log.

    Raises:
        GridError: training failed, or stopped before its last step.
    """
    cell.directory.mkdir(parents=True, exist_ok=True)
    write_whole(cell.directory / "settings.json", json.dumps(cell.identity, indent=1))
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    log = cell.directory / "train.log"
    with log.open("a") as output:
        code = subprocess.run(cell.command, env=environment, stdout=output, stderr=output, check=False).returncode
    if code != 0 or not is_trained(cell):
        tail = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise GridError(
            f"{cell.directory}: training ended with code {code} before its last step ({' '.join(tail)}); see {log}. "
            f"The command was: {shlex.join(cell.command)}"
        )


def train_all(grid: Grid) -> None:
    """Trains every cell that is not trained yet, `grid.jobs` at a time; the bar counts steps and has an ETA."""
    waiting = [cell for cell in cells(grid) if not is_trained(cell)]
    total = sum(map(planned_steps, waiting))
    begun = sum(map(_logged_step, waiting))
    with ThreadPoolExecutor(grid.jobs) as pool, tqdm(total=total, initial=begun, desc="training", unit="step") as bar:
        futures = {pool.submit(train, cell, grid.threads): cell for cell in waiting}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
                for future in done:
                    future.result()
                bar.set_postfix_str(f"{len(waiting) - len(pending)}/{len(waiting)} cells", refresh=False)
                bar.update(sum(map(_logged_step, waiting)) - bar.n)
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _logged_step(cell: Cell) -> int:
    """The last step in the cell's log; 0 if there is none (yet)."""
    log = cell.directory / "metrics.jsonl"
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that is being written, or the rest of a cut one
    return 0


def trained_cells(grid: Grid) -> Iterator[Cell]:
    """The cells whose training is complete."""
    return (cell for cell in cells(grid) if is_trained(cell))


def measure_all(grid: Grid, measure: Callable[[Cell], Mapping[str, Any]]) -> None:
    """Measures every trained cell that has no result yet."""
    waiting = [cell for cell in trained_cells(grid) if not cell.result.is_file()]
    for cell in tqdm(waiting, desc="measuring", unit="cell"):
        write_whole(cell.result, json.dumps(measure(cell), indent=1))


def results(grid: Grid) -> dict[str, dict[int, dict[str, Any]]]:
    """{variant: {seed: content of cell.json}} of the cells measured so far, in the grid's order.

    Raises:
        GridError: a cell was trained with other settings, or its result cannot be read.
    """
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for variant in grid.all_variants:
        for seed in grid.seeds_of(variant):
            cell = make_cell(grid, variant, seed)
            if cell.result.is_file():
                check_settings(cell)
                content = read_json(cell.result, _unreadable, finite=False)  # a loss may have become NaN
                if not isinstance(content, dict):
                    raise _unreadable(f"{cell.result}: not the result of a cell")
                measured.setdefault(variant, {})[seed] = content
    return measured


def training_facts(cell: Cell) -> dict[str, Any]:
    """What every kind of grid wants to know of a trained cell."""
    return run_facts(cell.directory)


def validation_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row of validation says, without what it says of itself (its kind, step and time)."""
    return {name: float(value) for name, value in row.items() if name not in ("kind", "step", "seconds")}


def run_facts(directory: Path) -> dict[str, Any]:
    """A run's last validation, tokens, seconds, throughput."""
    from statistics import median

    from eval.report.run_record import finite, read_run

    record = read_run(directory)
    last = record.rows["valid"][-1]
    return {
        "valid": validation_numbers(last),
        "train_loss": record.last("train", "loss"),
        "tokens": record.last("train", "tokens"),
        "seconds": record.seconds(),
        "tokens_per_second": median(finite(record.series("train", "tokens_per_second")[1]) or [0.0]),
    }
