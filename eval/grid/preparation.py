"""Grids that name their inputs and make them: definitions, filled into every string, and commands that run first.

definitions: {ocr: null, work: runs/x}       {ocr} and {work} in any string of the YAML; null: --define ocr=PATH
preparation: [{name, title, output, command}] commands before the training, each done once
    (`pretrain/quickstarts/commands_once.py`)
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval.commands import PreparedGridOptions, read_definitions
from eval.grid.grid import Cell, Grid, GridError, build_grid, measure_all, read_mapping, results, train_all


@dataclass(frozen=True)
class Step:
    """One command of the preparation."""

    name: str
    """Short name of its mark."""
    title: str
    """What it does, for the terminal."""
    output: str
    """What it makes."""
    command: str
    """The command line; a leading ``python`` is this interpreter."""


@dataclass(frozen=True, kw_only=True)
class PreparedGrid(Grid):
    """A grid with definitions and a preparation. `{name}` in any string stands for a definition."""

    preparation: list[Step] = field(default_factory=list)
    """Commands to run first, in order."""
    definitions: dict[str, str | None] = field(default_factory=dict)
    """Values for `{name}`, in which those above can be used; one that is null must be given on the command line."""


PreparedType = TypeVar("PreparedType", bound=PreparedGrid)


def read_options(options: PreparedGridOptions, kind: type[PreparedType]) -> PreparedType:
    """The grid that a command line names. Raises `GridError`."""
    return read_prepared_grid(Path(options.config), read_definitions(options.define), kind)


def read_prepared_grid(path: Path, given: Mapping[str, str], kind: type[PreparedType]) -> PreparedType:
    """Reads a grid and puts its definitions in.

    Args:
        path: the YAML.
        given: definitions from the command line; they override the file's.
        kind: the grid's class.

    Raises:
        GridError: naming the file and the field or the definition at fault.
    """
    return build_grid(read_defined(path, given), path, kind)


def read_defined(path: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """A YAML's mapping with its `definitions` put in; arguments and errors as for `read_prepared_grid`."""
    content = read_mapping(path)
    defaults = content.get("definitions") or {}
    if unknown := sorted(set(given) - set(defaults)):
        raise GridError(f"{path}: --define {unknown[0]}: there is no such definition; known are {', '.join(defaults)}")
    values = {**defaults, **given}
    if missing := [name for name, value in values.items() if value is None]:
        raise GridError(f"{path}: {missing[0]} is not defined; give --define {missing[0]}=VALUE")
    located: dict[str, str] = {}
    for name, value in values.items():  # a definition may use those above it
        located[name] = _located(name, _filled(str(value), located))
    return _filled(content, located)


def _located(name: str, value: str) -> str:
    """``package:NAME`` becomes the folder of that installed package."""
    kind, separator, package = value.partition(":")
    if kind != "package" or not separator:
        return value
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise GridError(f"{name}: there is no installed package {package!r}; install it, or give --define {name}=PATH")
    return spec.submodule_search_locations[0]


def _filled(content: Any, values: Mapping[str, str]) -> Any:
    """`content` with every ``{name}`` of `values` in its strings replaced."""
    if isinstance(content, str):
        for name, value in values.items():
            content = content.replace("{" + name + "}", value)
        return content
    if isinstance(content, dict):
        return {key: _filled(value, values) for key, value in content.items()}
    return [_filled(item, values) for item in content] if isinstance(content, list) else content


def prepare(grid: PreparedGrid) -> None:
    """Runs the preparation's commands that are not done yet.

    Raises:
        StepFailed: a command failed; its own message is above.
    """
    from pretrain.quickstarts.commands_once import Pipeline

    pipeline = Pipeline(Path(grid.output))
    for step in grid.preparation:
        words = shlex.split(step.command)
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        pipeline.run(step.name, step.title, Path(step.output), *words)


def run_stages(
    grid: PreparedGrid,
    stage: str,
    measure: Callable[[Cell], Mapping[str, Any]],
    write: Callable[[dict[str, dict[int, dict[str, Any]]]], Path],
) -> None:
    """Prepares, trains and measures what is not done yet, and reports, as far as `--stage` asks for it.

    Args:
        grid: the grid.
        stage: all, or one of prepare, train, evaluate, report; evaluate reports too.
        measure: trained cell -> content of its cell.json.
        write: {variant: {seed: content of cell.json}} -> the report it has written.
    """
    if stage in ("all", "prepare", "train"):
        prepare(grid)
    if stage in ("all", "train"):
        train_all(grid)
    if stage in ("all", "evaluate"):
        measure_all(grid, measure)
    if stage in ("all", "evaluate", "report"):
        print(f"written: {write(results(grid))}")
