"""Reads what a training run left behind; whatever is missing is listed, not fatal."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.untrusted_files import read_json, read_yaml, typed
from eval.report.pictures import CAPTIONS, Picture, read_pictures
from pretrain.tasks.facts import NAME as TASK_FILE
from pretrain.tasks.facts import Facts, read_facts

Row = dict[str, Any]
Lines = dict[str, tuple[list[float], list[float]]]
"""{name: (steps, values)}."""


class RunNotFoundError(InputError, FileNotFoundError):
    """There is no run directory at the given path."""


@dataclass
class RunRecord:
    """One run directory, read into memory."""

    directory: Path
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """Rows of metrics.jsonl by kind: train, valid, eval, event; numbers as floats, non-finite ones included."""
    config: dict[str, Any] = field(default_factory=dict)
    """config.yaml."""
    audit: dict[str, str] = field(default_factory=dict)
    """audit.json: the step-0 table."""
    evaluations: dict[str, Any] = field(default_factory=dict)
    """eval/NAME.json by name."""
    samples: list[dict[str, str]] = field(default_factory=list)
    """samples.json: generated text, each with ``prompt`` and ``text``."""
    pictures: list[Picture] = field(default_factory=list)
    """eval/*.png."""
    facts: Facts = field(default_factory=lambda: Facts("", text_samples=True))
    """What its task declares."""
    missing: list[str] = field(default_factory=list)
    """What a complete run has and this one lacks or has in an unreadable form, one sentence each."""

    @property
    def unit(self) -> str | None:
        """What the run counts: the column of its training rows, tokens or images, whose rate stands beside it."""
        rates = (name.removesuffix("_per_second") for name in self.names("train", "") if name.endswith("_per_second"))
        return next((unit for unit in rates if self.last("train", unit) is not None), None)

    def series(self, kind: str, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one number over the run."""
        pairs = [(float(r["step"]), float(r[name])) for r in self.rows.get(kind, []) if name in r]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def names(self, kind: str, prefix: str) -> list[str]:
        """Names of the numbers of a kind that start with ``prefix``, in order of appearance."""
        found = (
            name
            for row in self.rows.get(kind, [])
            for name, value in row.items()
            if name.startswith(prefix) and not isinstance(value, (dict, list))  # `phases`, which status shows
        )
        return list(dict.fromkeys(found))

    def last(self, kind: str, name: str) -> float | None:
        """The newest value of one number, or None."""
        values = self.series(kind, name)[1]
        return values[-1] if values else None

    def seconds(self) -> float:
        """Wall clock over all processes of the run: the clock in the rows restarts on resume."""
        total = previous = 0.0
        for row in self.rows.get("train", []):
            now = float(row.get("seconds", 0.0))
            total += now - previous if now >= previous else now
            previous = now
        return total


def read_run(directory: Path) -> RunRecord:
    """Reads a run directory. Raises `RunNotFoundError` if it is not there."""
    if not directory.is_dir():
        raise RunNotFoundError(f"{directory}: there is no run directory")
    if not any((directory / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise RunNotFoundError(f"{directory}: not a run directory (it has neither config.yaml nor metrics.jsonl)")
    record = RunRecord(directory)
    _read_metrics(record)
    for name, kind in (("config.yaml", dict), ("audit.json", dict), ("samples.json", list)):
        if name == "samples.json":
            _read_facts(record)
            if not (record.facts.text_samples or (directory / name).is_file()):
                continue
        value = _read(record, name, kind)
        if value is not None:
            setattr(record, name.partition(".")[0], value)
    record.pictures, problems = read_pictures(directory / "eval")
    record.missing += problems
    for path in sorted((directory / "eval").glob("*.json")):
        if path.name == CAPTIONS:
            continue
        value = _read(record, f"eval/{path.name}", object)
        if value is not None:
            record.evaluations[path.stem] = value
    if not record.evaluations:
        record.missing.append("eval/*.json: no evaluation was run")
    return record


def _read_facts(record: RunRecord) -> None:
    task = record.config.get("task")
    class_path = str(task.get("class_path", "")) if isinstance(task, dict) else ""
    if not class_path:
        return
    try:
        record.facts = read_facts(record.directory, class_path)
    except ValueError as error:
        record.missing.append(f"{TASK_FILE} cannot be read: {error}")
    if record.facts.suggestions is None:
        record.missing.append(f"suggestions: {class_path} declares none (docs/add_a_task.md)")


def _read_metrics(record: RunRecord) -> None:
    path = record.directory / "metrics.jsonl"
    if not path.is_file():
        record.missing.append("metrics.jsonl: the run has not logged a step")
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        rows = [_row(line) for line in lines]
    for number, row in enumerate(rows, start=1):
        if row is not None:
            record.rows.setdefault(row["kind"], []).append(row)
        else:
            record.missing.append(f"metrics.jsonl:{number}: not a metrics row (a kill can cut the last line off)")


def _row(line: str) -> Row | None:
    """One row of metrics.jsonl, or None: not a kind, a step and what else was logged."""
    try:
        row = json.loads(line)  # numbers that are not finite are meant here
        float(row["step"])
        return row if isinstance(row["kind"], str) else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _read(record: RunRecord, name: str, kind: type) -> Any:
    """The content of a file of the run if it is there, can be read, and is of type `kind`."""
    path = record.directory / name
    if not path.is_file():
        record.missing.append(f"{name} is not there")
        return None
    try:
        content = read_yaml(path, ValueError) if path.suffix == ".yaml" else read_json(path, ValueError, finite=False)
        if kind is list and isinstance(content, list):
            return [typed(dict[str, str], entry, str(path), ValueError) for entry in content]
        if isinstance(content, kind):
            return content
        raise ValueError(f"expected {kind.__name__}, found {type(content).__name__}")
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}").lstrip(": ").splitlines()[0]
        record.missing.append(f"{name} cannot be read: {reason}")
        return None


def finite(values: list[float]) -> list[float]:
    """The finite ones."""
    return [value for value in values if math.isfinite(value)]
