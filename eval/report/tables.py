"""Tables of the report: every RUN/eval/NAME.json that holds `results`, in the shape that reads best.

    {task: {metric: value, metric_stderr: value}}            a line per task and metric (lm-eval)
    {task: {metric: value, metric@PLACE: value}}             the same, with a column per place (visual prompting)
    {recogniser: {benchmark: {accuracy: ..., images: ...}}}  a line per benchmark, a column per recogniser (eval ocr)

Any evaluation that writes one of these shapes is in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval.report.run_record import RunRecord

Cell = Any
"""Text, a number, or None for an empty cell."""


@dataclass(frozen=True)
class Table:
    """A table of results."""

    name: str
    columns: list[str]
    rows: list[list[Cell]]
    limit: int | None = None
    """Documents per task, where only some were used."""


def evaluation_tables(record: RunRecord) -> list[Table]:
    """One table per evaluation that holds results."""
    tables = []
    for name, content in record.evaluations.items():
        results = content.get("results") if isinstance(content, dict) else None
        if isinstance(results, dict):
            nested = any(isinstance(value, dict) for metrics in results.values() for value in metrics.values())
            tables.append(_recognisers(name, content) if nested else _metrics(name, content))
    return tables


def _metrics(name: str, content: dict[str, Any]) -> Table:
    """Lines of (task, metric, value, further columns): the standard error, and every place that is named after an @."""
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for task, metrics in content["results"].items():
        for name_and_place, value in metrics.items():
            metric, _, place = name_and_place.partition("@")
            if metric.endswith("_stderr"):
                metric, place = metric.removesuffix("_stderr"), "± standard error"
            lines.setdefault((task, metric), {})[place or "value"] = value
    places = list(dict.fromkeys(place for cells in lines.values() for place in cells))
    rows = [[task, metric, *map(cells.get, places)] for (task, metric), cells in lines.items()]
    return Table(name, ["task", "metric", *places], rows, content.get("limit"))


def _recognisers(name: str, content: dict[str, Any]) -> Table:
    """Word accuracies in percent, benchmark by recogniser, and the means over all benchmarks."""
    results: dict[str, dict[str, dict[str, float]]] = content["results"]
    benchmarks = list(dict.fromkeys(benchmark for scores in results.values() for benchmark in scores))
    rows: list[list[Cell]] = []
    for benchmark in benchmarks:
        scores = [results[recogniser].get(benchmark, {}) for recogniser in results]
        images = next((score["images"] for score in scores if "images" in score), None)
        rows.append([benchmark, images, *(_percent(score.get("accuracy")) for score in scores)])
    titles = {"accuracy": "mean, by images", "case_sensitive": "  case-sensitive", "similarity": "  1 - NED"}
    for field, title in titles.items():
        means = [content.get("mean", {}).get(recogniser, {}).get(field) for recogniser in results]
        if any(mean is not None for mean in means):
            rows.append([title, sum(row[1] or 0 for row in rows[: len(benchmarks)]), *map(_percent, means)])
    return Table(f"{name}: word accuracy in %", ["benchmark", "images", *results], rows, content.get("limit"))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
