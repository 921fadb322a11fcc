"""One self-contained report.html per run: what happened, how good it is, what to try next.

Charts are inline SVG in the page's own text colour, and pictures are embedded, so the file needs no network, script or
other file and follows the reader's light or dark setting. Whatever the run does not have is named in the page.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from eval.commands import ReportOptions
from eval.plots import line_chart
from eval.report.run_record import Lines, RunRecord, finite, read_run
from eval.report.suggestions import suggestions
from eval.report.tables import evaluation_tables

TEMPLATES = Path(__file__).with_name("templates")
TRAINER_NUMBERS = ("kind", "step", "seconds", "loss", "lr", "grad_norm", "tflops", "mfu", "data_wait", "round")
"""Columns of training rows that every task has."""


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``4 min 10 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def human(number: float) -> str:
    """``1.23 M``, ``4.5 k``: three significant digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def cell(value: Any) -> str:
    """A value in a table: counts whole, other numbers with four digits, None empty."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def tiles(record: RunRecord) -> list[tuple[str, str]]:
    """(label, value) of the numbers to see first; those that the run does not have are left out."""
    found: list[tuple[str, str]] = []
    steps, planned = record.last("train", "step"), record.config.get("steps")
    if steps is not None:
        found.append(("steps", f"{steps:,.0f}" + (f" of {planned:,}" if isinstance(planned, int) else "")))
    for label, kind, name in (("training loss", "train", "loss"), ("validation loss", "valid", "loss")):
        value = record.last(kind, name)
        if value is not None:
            found.append((label, f"{value:.4f}"))
    for name in record.names("valid", "bits_per_byte"):
        found.append((f"bits per byte {name.partition('/')[2]}".strip(), f"{record.last('valid', name):.4f}"))
    if unit := record.unit:
        found.append((f"{unit} seen", human(record.last("train", unit) or 0)))
        if rates := finite(record.series("train", f"{unit}_per_second")[1]):
            found.append((f"{unit}/s (median)", human(median(rates))))
    if mfu := finite(record.series("train", "mfu")[1]):
        found.append(("MFU (median)", f"{median(mfu):.1%}"))
    if waits := finite(record.series("train", "data_wait")[1]):
        found.append(("waiting for data (median)", f"{median(waits):.1%}"))
    if "parameters" in record.audit:
        found.append(("parameters", str(record.audit["parameters"])))
    if record.seconds():
        found.append(("wall clock", duration(record.seconds())))
    return found


def charts(record: RunRecord) -> list[str]:
    """SVG of every curve that the run logged."""
    losses = {"train": record.series("train", "loss"), "validation": record.series("valid", "loss")}
    unit = record.unit or "samples"
    planned = [
        (losses, "Loss (nats per token)" if unit == "tokens" else "Loss", False),
        *((lines, title, False) for title, lines in validation_curves(record).items()),
        *((lines, title, False) for title, lines in task_curves(record).items()),
        ({f"{unit}/s": record.series("train", f"{unit}_per_second")}, f"Throughput ({unit}/s)", False),
        ({"MFU": record.series("train", "mfu")}, "Model FLOPs utilisation", False),
        ({"learning rate": record.series("train", "lr")}, "Learning rate", False),
        ({"norm": record.series("train", "grad_norm")}, "Gradient norm", True),
        *((series, title, False) for title, series in evaluation_curves(record).items()),
    ]
    by_layer = collapse_curves(record)
    drawn = [({name: line for name, line in lines.items() if finite(line[1])}, t, log) for lines, t, log in planned]
    over_steps = [line_chart(lines, title, log_y=log) for lines, title, log in drawn if lines]
    return over_steps + [line_chart(lines, title, x_label="layer (0: embeddings)") for title, lines in by_layer.items()]


def validation_curves(record: RunRecord) -> dict[str, Lines]:
    """{title: {source: (steps, values)}} of what each validation source has, its loss where nothing else is derived."""
    metrics: dict[str, Lines] = {}
    for name in record.names("valid", ""):
        metric, slash, source = name.partition("/")
        if slash:
            metrics.setdefault(metric, {})[source] = record.series("valid", name)
    derived = {metric: lines for metric, lines in metrics.items() if metric != "loss"}
    several = {metric: lines for metric, lines in metrics.items() if len(lines) > 1}
    return {f"Validation {metric.replace('_', ' ')}": lines for metric, lines in (derived or several).items()}


def task_curves(record: RunRecord) -> dict[str, Lines]:
    """{title: {name: (steps, values)}} of the numbers that the run's own task logs in training."""
    names = [name for name in record.names("train", "") if name not in TRAINER_NUMBERS]
    names = [name for name in names if name != record.unit and not name.endswith("_per_second")]
    return {f"In training: {name.replace('_', ' ')}": {name: record.series("train", name)} for name in names}


def collapse_curves(record: RunRecord) -> dict[str, Lines]:
    """{title: {model: (layers, values)}} of eval/collapse.json, which `python -m eval collapse` writes."""
    models = record.evaluations.get("collapse", {})
    titles = {"effective_dimension": "Effective dimension by layer", "diversity": "Diversity d_M(Z)/‖Z‖ by layer"}
    return {
        title: {
            model: ([float(row["layer"]) for row in result["layers"]], [float(row[name]) for row in result["layers"]])
            for model, result in models.items()
        }
        for name, title in titles.items()
        if models
    }


def evaluation_curves(record: RunRecord) -> dict[str, Lines]:
    """{metric: {task: (steps, values)}} of the evaluations during the run, where there were at least two."""
    curves: dict[str, Lines] = {}
    for row in record.rows.get("eval", []):
        for task, metrics in row.get("results", {}).items():
            for metric, value in metrics.items():
                if not metric.endswith("_stderr"):
                    steps, values = curves.setdefault(f"During training: {metric}", {}).setdefault(task, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return {t: kept for t, lines in curves.items() if (kept := {n: x for n, x in lines.items() if len(x[0]) > 1})}


def render(record: RunRecord) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("report.html.j2").render(
        name=record.directory.resolve().name,
        tiles=tiles(record),
        charts=charts(record),
        tables=evaluation_tables(record),
        pictures=record.pictures,
        samples=[s for s in record.samples if isinstance(s, dict)],
        events=record.rows.get("event", []),
        audit=record.audit,
        config=yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True) if record.config else "",
        missing=record.missing,
        suggestions=suggestions(record),
        cell=cell,
    )


def write_report(run: str | Path, output: str | Path | None = None) -> Path:
    """Renders RUN/report.html (or ``output``) and returns its path. Raises `RunNotFoundError`."""
    directory = Path(run)
    path = Path(output) if output else directory / "report.html"
    html = render(read_run(directory))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def run(options: ReportOptions) -> None:
    """``python -m eval report``."""
    print(f"written: {write_report(options.run, options.output)}")
