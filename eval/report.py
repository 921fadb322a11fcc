"""One self-contained report.html per run: what happened, how good it is, what to try next.

Charts are inline SVG in the page's own text colour, so the file needs no network, script or other file and follows the
reader's light or dark setting. Whatever the run does not have is named in the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from arch.finding import newest_checkpoints
from eval.commands import ReportOptions
from eval.plots import line_chart
from eval.run_record import RunRecord, finite, read_run

TEMPLATES = Path(__file__).with_name("templates")
MUCH_WAITING = 0.1
"""Share of the time spent waiting for data above which more workers are suggested."""


@dataclass(frozen=True)
class Suggestion:
    """Something to try next: why, and the command that does it."""

    reason: str
    command: str


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
    tokens, rates = record.last("train", "tokens"), finite(record.series("train", "tokens_per_second")[1])
    if tokens is not None:
        found.append(("tokens seen", human(tokens)))
    if rates:
        found.append(("tokens/s (median)", human(median(rates))))
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
    per_source = {n.partition("/")[2]: record.series("valid", n) for n in record.names("valid", "bits_per_byte/")}
    planned = [
        (losses, "Loss (nats per token)", False),
        (per_source, "Validation bits per byte", False),
        ({"tokens/s": record.series("train", "tokens_per_second")}, "Throughput (tokens/s)", False),
        ({"MFU": record.series("train", "mfu")}, "Model FLOPs utilisation", False),
        ({"learning rate": record.series("train", "lr")}, "Learning rate", False),
        ({"norm": record.series("train", "grad_norm")}, "Gradient norm", True),
        *((series, title, False) for title, series in evaluation_curves(record).items()),
    ]
    by_layer = collapse_curves(record)
    drawn = [({name: line for name, line in lines.items() if finite(line[1])}, t, log) for lines, t, log in planned]
    over_steps = [line_chart(lines, title, log_y=log) for lines, title, log in drawn if lines]
    return over_steps + [line_chart(lines, title, x_label="layer (0: embeddings)") for title, lines in by_layer.items()]


def collapse_curves(record: RunRecord) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
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


def evaluation_curves(record: RunRecord) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """{metric: {task: (steps, values)}} of the evaluations during the run, where there were at least two."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in record.rows.get("eval", []):
        for task, metrics in row.get("results", {}).items():
            for metric, value in metrics.items():
                if not metric.endswith("_stderr"):
                    steps, values = curves.setdefault(f"During training: {metric}", {}).setdefault(task, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return {t: kept for t, lines in curves.items() if (kept := {n: x for n, x in lines.items() if len(x[0]) > 1})}


def evaluation_tables(record: RunRecord) -> list[dict[str, Any]]:
    """One table per eval/NAME.json that holds results: rows of (task, metric, value, standard error)."""
    tables = []
    for name, content in record.evaluations.items():
        results = content.get("results") if isinstance(content, dict) else None
        if not isinstance(results, dict):
            continue
        rows = [
            (task, metric, value, metrics.get(f"{metric}_stderr"))
            for task, metrics in results.items()
            for metric, value in metrics.items()
            if not metric.endswith("_stderr")
        ]
        tables.append({"name": name, "rows": rows, "limit": content.get("limit")})
    return tables


def suggestions(record: RunRecord) -> list[Suggestion]:
    """What to try next, from what the run shows; every command can be pasted."""
    run = record.directory
    train = f"deepspeed pretrain/train.py --config {run}/config.yaml"
    checkpoint = next(iter(newest_checkpoints(run)), run)
    found: list[Suggestion] = []
    skips = [row for row in record.rows.get("event", []) if row.get("event") in ("skip", "rollback")]
    rate, steps = record.config.get("optimizer", {}).get("lr"), record.config.get("steps")
    if skips:
        lower = f" --optimizer.lr {rate / 3:.2g}" if isinstance(rate, float) else " --optimizer.lr 3e-4"
        found.append(
            Suggestion(f"{len(skips)} steps were skipped or rolled back.", f"{train}{lower} --output {run}-lower-lr")
        )
    valid = finite(record.series("valid", "loss")[1])
    if len(valid) >= 2 and isinstance(steps, int):
        if valid[-1] <= min(valid):
            reason = f"Validation loss was still falling ({valid[-2]:.3f} to {valid[-1]:.3f}) at the end."
            found.append(Suggestion(reason, f"{train} --steps {2 * steps} --output {run}-longer"))
        else:
            reason = f"Validation loss ends above its best ({min(valid):.3f}): more text helps more than more steps."
            tokenizer = f"--tokenizer {checkpoint}/tokenizer"
            command = f"python -m data_pipeline prepare --input MORE.jsonl {tokenizer} --output MORE"
            found.append(Suggestion(reason, command))
    mfu = finite(record.series("train", "mfu")[1])
    if mfu and median(mfu) > 1:
        reason = (
            f"MFU {median(mfu):.0%}: the machine was busy while its peak was measured. Run it alone for a true MFU."
        )
        found.append(Suggestion(reason, f"{train} --output {run}-alone"))
    waits = finite(record.series("train", "data_wait")[1])
    if waits and median(waits) > MUCH_WAITING:
        workers = record.config.get("loader", {}).get("workers", 0) + 1
        reason = f"{median(waits):.0%} of the time went into waiting for data; let more workers read ahead."
        found.append(Suggestion(reason, f"{train} --loader.workers {workers}"))
    if not record.evaluations:
        found.append(
            Suggestion("No benchmark has been run.", f"python -m eval lm --model {run} --tasks piqa,arc_easy,blimp")
        )
    return [
        *found,
        Suggestion(
            "See whether features collapse with depth.",
            f"python -m eval collapse --model {run} --text HELD_OUT.jsonl --output {run}/eval",
        ),
        Suggestion(
            "Use the model anywhere: transformers format, checked.",
            f"python -m arch export --model {checkpoint} --out {run}/export",
        ),
        Suggestion(
            "The whole PanGu-pi benchmark set from local files.",
            f"python -m eval lm --model {run} --data BENCHMARKS --tasks pangu_pi",
        ),
    ]


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
        samples=[s for s in record.samples if isinstance(s, dict)],
        events=record.rows.get("event", []),
        audit=record.audit,
        config=yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True) if record.config else "",
        missing=record.missing,
        suggestions=suggestions(record),
        number=lambda value: f"{value:.4g}" if isinstance(value, (int, float)) and math.isfinite(value) else str(value),
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
