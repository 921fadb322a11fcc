"""Tables of the report: every RUN/eval/NAME.json that holds `results`, in the shape that reads best.

{task: {metric: value, metric_stderr: value}}            a line per task and metric (lm-eval, visual prompting)
{recogniser: {benchmark: {accuracy: ..., images: ...}}}  a line per benchmark, a column per recogniser (eval ocr)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval.run_record import RunRecord

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
    """Lines of (task, metric, value, standard error); the last column only where there is one."""
    rows = [
        [task, metric, value, metrics.get(f"{metric}_stderr")]
        for task, metrics in content["results"].items()
        for metric, value in metrics.items()
        if not metric.endswith("_stderr")
    ]
    columns = ["task", "metric", "value", "± standard error"]
    if all(row[3] is None for row in rows):
        columns, rows = columns[:3], [row[:3] for row in rows]
    return Table(name, columns, rows, content.get("limit"))


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
