"""What is measured on a trained cell, whatever it trains; its task declares what is measured besides.

    any task            parameters, samples seen, training FLOPs, seconds, validation losses, learning curve
    word recognition    word accuracy on benchmarks and on a held-out store, image by image (`eval/words/ocr.py`)

Language models need no measurement of their own: bits per byte and perplexity are in their validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.grid.grid import Cell, GridError, planned_steps, training_facts, validation_numbers
from eval.grid.preparation import PreparedGrid
from eval.grid.statistics import Measured
from pretrain.tasks.facts import UNDECLARED, declared_function

if TYPE_CHECKING:
    from eval.words.ocr import Benchmark
    from pretrain.tasks import Task

BENCHMARKS, HELD_OUT = "benchmarks", "held_out"


@dataclass(frozen=True, kw_only=True)
class MeasuredGrid(PreparedGrid):
    """A grid of runs of any task."""

    metric: str = "loss"
    """The validation number to look at: loss or bits_per_byte (means over the held-out sources), loss/NAME,
    bits_per_byte/NAME, ..."""
    benchmarks: list[str] = field(default_factory=list)
    """Word recognition: stores of word images, or folders of them, whose images are taken together for the accuracy."""
    held_out: str | None = None
    """Word recognition: a store reported apart from the benchmarks, such as drawn words that were not trained on."""
    charset: str = "36"
    """Word recognition: what labels and readings are brought to before they are compared."""


def measure_cell(cell: Cell, grid: MeasuredGrid) -> dict[str, Any]:
    """The content of a cell's cell.json."""
    from eval.report.run_record import read_run
    from pretrain.command_line import parse

    config, _ = parse(cell.arguments)
    task, steps = config.task, planned_steps(cell)
    checkpoint = cell.directory / "checkpoints" / f"step_{steps:08d}"
    units, unit = task.units_per_sample()
    samples = config.batch.samples(steps)
    measured = {
        **training_facts(cell),
        "parameters": sum(parameter.numel() for parameter in task.load_model(checkpoint).parameters()),
        "steps": steps,
        "samples": samples,
        "unit": unit,
        "units_per_sample": units,
        "flops": samples * task.flops_per_sample(),
        "curve": [[row["step"], validation_numbers(row)] for row in read_run(cell.directory).rows["valid"]],
    }
    more = measure_more(task, checkpoint, grid)
    if both := sorted(measured.keys() & more.keys()):
        raise GridError(f"{task.measurement} returned {both[0]!r}, which every cell has already; give it another name")
    return measured | more


def measure_more(task: Task, checkpoint: Path, grid: MeasuredGrid) -> dict[str, Any]:
    """What the measurement that the task declares finds. A task that declares none is told of, once.

    Raises:
        GridError: it declares a function that is not there, or that does not return numbers by name.
    """
    if task.measurement == UNDECLARED:
        _say_undeclared(type(task).__name__)
        return {}
    try:
        measurement = declared_function(task)
    except ValueError as error:
        raise GridError(str(error)) from None
    found = {} if measurement is None else measurement(checkpoint, grid)
    if not isinstance(found, dict):
        raise GridError(f"{task.measurement} returned {type(found).__name__}; it must return numbers by name")
    return found


@cache
def _say_undeclared(name: str) -> None:
    print(
        f"{name} declares no measurement: its cells have validation numbers alone "
        "(docs/add_a_measurement.md; `measurement = None` says that these are all)",
        flush=True,
    )


def measure_words(checkpoint: Path, grid: MeasuredGrid) -> dict[str, Any]:
    """Scores and, image by image, what was read wrongly (1) or rightly (0), by benchmark."""
    from data_pipeline.words.labels import LabelRules
    from eval.words.ocr import correct, read_words, score
    from eval.words.recognisers import open_recogniser
    from tokenizer.characters import read_charset

    rules = LabelRules.for_charset(read_charset(grid.charset))
    recogniser = open_recogniser(str(checkpoint), None, "autoregressive", 1)
    found: dict[str, Any] = {}
    for kind, stores in ((BENCHMARKS, tuple(grid.benchmarks)), (HELD_OUT, (grid.held_out,) if grid.held_out else ())):
        found[kind] = {}
        for benchmark in open_benchmarks(stores, grid.charset):
            readings, seconds = read_words(recogniser, benchmark.words, 64, benchmark.name)
            result, _ = score(benchmark.words, readings, rules, seconds)
            wrong = "".join("01"[not right] for right in correct(benchmark.words, readings, rules))
            found[kind][benchmark.name] = {**asdict(result), "wrong": wrong, "left_out": len(benchmark.left_out)}
    return found


@cache
def open_benchmarks(stores: tuple[str, ...], charset: str) -> list[Benchmark]:
    """The benchmarks of all stores, opened once for all cells. Raises `SourceError` for an unreadable image."""
    from data_pipeline.words.labels import LabelRules
    from eval.words.ocr import find_benchmarks, read_benchmark
    from tokenizer.characters import read_charset

    rules = LabelRules.for_charset(read_charset(charset))
    found = [entry for store in stores for entry in find_benchmarks(Path(store)).items()]
    return [read_benchmark(name, path, rules, None, 0.0) for name, path in found]


@dataclass(frozen=True)
class Quantity:
    """A number that every run has; smaller is better."""

    name: str
    title: str
    values: dict[str, np.ndarray]
    """{variant: values of its runs [S]}."""
    wrong: dict[str, np.ndarray] | None = None
    """{variant: images that its runs got wrong [S, I]}, for shares of wrong images."""


def quantities_of(grid: MeasuredGrid, measured: Measured) -> list[Quantity]:
    """The validation metric, and the word errors where there are any.

    Raises:
        GridError: the metric was not validated, or the cells were measured on different images.
    """
    losses = {}
    for variant, runs in measured.items():
        for run in runs.values():
            if grid.metric not in run["valid"]:
                raise GridError(f"metric: {variant} has no {grid.metric!r}; it has {', '.join(run['valid'])}")
        losses[variant] = np.array([run["valid"][grid.metric] for run in runs.values()])
    found = [Quantity("loss", f"validation {grid.metric}", losses)]
    for kind, name, title in (
        (BENCHMARKS, "error", "word error on the benchmarks"),
        (HELD_OUT, "held_out_error", "word error on the held-out store"),
    ):
        marks = {variant: [_marks(run, kind) for run in runs.values()] for variant, runs in measured.items()}
        if len({len(row) for rows in marks.values() for row in rows}) > 1:
            raise GridError(f"{grid.output}: the cells were not measured on the same {kind} images; remove cell.json")
        if all(row for rows in marks.values() for row in rows):
            wrong = {variant: np.array([list(row) for row in rows]) == "1" for variant, rows in marks.items()}
            values = {variant: images.mean(axis=1) for variant, images in wrong.items()}
            found.append(Quantity(name, title, values, wrong))
    return found


def _marks(run: Mapping[str, Any], kind: str) -> str:
    """1 for each image that the run got wrong, 0 for the others, all stores of a kind in a row."""
    return "".join(result["wrong"] for result in run.get(kind, {}).values())
