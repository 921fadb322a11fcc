"""The report of a scaling grid: tables, fits with intervals, predictions of what was held out, null results by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.grid.grid import GridError
from eval.grid.power_law import Estimate
from eval.grid.resampling import seed_residuals
from eval.grid.statistics import Measured, markdown_table, opening, spread
from eval.studies.scaling import Point, Scaling, points_of
from eval.studies.scaling_fits import Analysis, Budget, Prediction, Series, analyse, budget_series, series_content
from eval.studies.scaling_plots import save_budget_plot, save_quantity_plot

CENSORED = "†"


def write_scaling_report(grid: Scaling, measured: Measured, config: str) -> Path:
    """Writes the Markdown, a JSON file beside it, and the plots.

    Raises:
        GridError: nothing has been measured yet.
    """
    points = points_of(grid, measured)
    if not points:
        raise GridError(f"{grid.output}: no measured cell yet")
    analyses = analyse(grid, points)
    budgets, budget_fits = budget_series(grid, points)
    path = Path(grid.report)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    hours = sum(_seconds(point) for point in points) / 3600
    lines = [
        *opening(grid, "scaling", config, measured, f", {hours:.2f} hours of training"),
        *grid_section(grid, points, analyses),
    ]
    for analysis in analyses:
        plot = save_quantity_plot(grid, points, analysis, folder)
        lines += quantity_section(analysis, f"{folder.name}/{plot.name}")
    if budgets:
        plot = save_budget_plot(grid, points, budgets, budget_fits, folder)
        lines += budget_section(grid, budgets, budget_fits, f"{folder.name}/{plot.name}")
    path.write_text("\n".join(lines), encoding="utf-8")
    content = to_content(grid, points, analyses, budgets, budget_fits)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def grid_section(grid: Scaling, points: Sequence[Point], analyses: Sequence[Analysis]) -> list[str]:
    """Sizes by volumes: every quantity, and when the runs left the plateau."""
    unit = points[0].unit
    seen = sorted({run["samples"] * run["units_per_sample"] for point in points for run in point.runs.values()})
    lines = [
        "## The grid",
        "",
        f"Parameters by rows, different training {unit} by columns; mean ± standard deviation over seeds. Runs saw "
        + (f"{seen[0]:,} {unit} each. " if len(seen) == 1 else f"{seen[0]:,} to {seen[-1]:,} {unit}. ")
        + f"{CENSORED}: censored, a run of the cell did not come below the plateau"
        + (f" ({grid.metric} {grid.plateau:g})." if grid.plateau is not None else " (none is given)."),
        "",
    ]
    for analysis in analyses:
        shown = {name: spread(list(values)) for name, values in analysis.quantity.values.items()}
        lines += [f"**{_capital(analysis.quantity.title)}**", "", *size_table(points, shown), ""]
    hours = {point.name: f"{_seconds(point) / 3600 / len(point.runs):.3f}" for point in points}
    lines += ["**Training hours of a run**", "", *size_table(points, hours)]
    if grid.plateau is not None:
        steps = {
            point.name: ", ".join("never" if step is None else f"{step:,}" for step in point.breakthroughs.values())
            for point in points
        }
        title = "**Break-through: first validated step below the plateau, by seed**"
        lines += ["", title, "", *size_table(points, steps)]
    return [*lines, ""]


def size_table(points: Sequence[Point], shown: Mapping[str, str]) -> list[str]:
    """One row for each size, one column for each volume; `shown` by variant."""
    sizes = dict.fromkeys((point.size, point.parameters) for point in points)
    volumes = sorted({(point.amount, point.data, point.volume) for point in points})
    found = {(point.size, point.volume): point for point in points}
    rows = []
    for size, parameters in sizes:
        row = [f"`{size}`", f"{parameters:,}"]
        for _, _, volume in volumes:
            point = found.get((size, volume))
            row.append(shown[point.name] + (f" {CENSORED}" if point.censored else "") if point is not None else "")
        rows.append(row)
    columns = ["size", "parameters", *(f"`{name}`: {data:,} {points[0].unit}" for _, data, name in volumes)]
    return markdown_table(columns, rows)


def quantity_section(analysis: Analysis, plot: str) -> list[str]:
    """Fits, predictions and null results of one quantity."""
    lines = [f"## {_capital(analysis.quantity.title)}", "", f"![fits]({plot})", ""]
    if not len(seed_residuals(list(analysis.quantity.values.values()))):
        lines += [
            "No cell has several seeds: no interval knows the noise of training.",
            "",
        ]
    if analysis.excluded:
        names = {
            why: [f"`{name}`" for name, other in analysis.excluded.items() if other == why]
            for why in analysis.excluded.values()
        }
        lines += ["Not fitted: " + "; ".join(f"{', '.join(cells)} ({why})" for why, cells in names.items()) + ".", ""]
    if not analysis.series:
        return [*lines, "Too few cells are left to fit a law to.", ""]
    lines += [
        "Laws fitted to all points, with 95 % intervals from resamples of "
        + ("test images (the same for every cell) and seeds:" if analysis.quantity.wrong is not None else "seeds:"),
        "",
        *fit_table(analysis.series.values()),
        "",
        "The largest held out: the same laws fitted to the rest, and two baselines:",
        "",
        *prediction_table(analysis.series.values()),
        "",
        *(f"- {sentence}" for series in analysis.series.values() for sentence in statements(series)),
        "",
    ]
    return lines


def fit_table(found: Any) -> list[str]:
    """One row for each law on each axis."""
    rows = []
    for series in found:
        for name, fit in series.fits.items():
            constants = ", ".join(f"{key} = {_estimate(value)}" for key, value in fit.constants().items())
            rows.append([series.axis, str(len(series.y)), name, f"`{fit.law.formula}`", constants])
    return markdown_table(["against", "points", "law", "formula", "constants (95 % interval)"], rows)


def prediction_table(found: Any) -> list[str]:
    """One row for each law's prediction of each held-out point; of the joint law's, the mean too."""
    columns = ["against", "held out", "cell", "law", "observed", "predicted (95 % interval)", "relative error"]
    rows = []
    for series in found:
        for title, predictions in series.predictions.items():
            for entry in predictions:
                row = [series.axis, title, f"`{entry.point}`", entry.law, f"{entry.observed:.4f}"]
                covered = ("yes" if entry.covered else "no") if entry.predicted.resampled else ""
                rows.append([*row, _estimate(entry.predicted), f"{entry.relative_error:+.1%}", covered])
    return markdown_table([*columns, "covered"], rows)


def statements(series: Series) -> list[str]:
    """What the rules of section 9 say: flat exponents, missed predictions, and which law predicts best."""
    sentences = []
    for name, fit in series.fits.items():
        for exponent in fit.flat():
            sentences.append(f"{series.axis}, {name} law: null result, the interval of {exponent} has 0 in it.")
    for title, predictions in series.predictions.items():
        for entry in predictions:
            if entry.predicted.resampled and not entry.covered and entry.law in ("power", "offset", "joint"):
                sentences.append(
                    f"{series.axis}, {entry.law} law: `{entry.point}`, held out as {title}, lies outside of its "
                    f"interval ({entry.relative_error:+.1%})."
                )
        if best := _best(predictions):
            sentences.append(f"{series.axis}, {title} held out: {best}")
    return sentences


def _best(predictions: Sequence[Prediction]) -> str:
    """The law of the smallest mean held-out error, if there is a choice."""
    laws = dict.fromkeys(entry.law for entry in predictions)
    errors = {
        law: float(np.mean([abs(entry.relative_error) for entry in predictions if entry.law == law])) for law in laws
    }
    if not errors:
        return "too few points are left to fit."
    ranked = sorted(errors, key=lambda law: errors[law])
    listing = ", ".join(f"{law} {errors[law]:.1%}" for law in ranked)
    return f"mean absolute relative error {listing}."


def budget_section(grid: Scaling, budgets: Sequence[Budget], series: Series | None, plot: str) -> list[str]:
    """The best of all learning curves at fixed budgets."""
    rows = [[f"{entry.flops:.3g}", f"{entry.hours:.3f}", f"{entry.value:.4f}", f"`{entry.point}`"] for entry in budgets]
    lines = [
        "## Compute",
        "",
        f"The lowest validation {grid.metric} that any learning curve has reached within a training compute. Points in "
        "the middle of a run whose learning rate decays are **biased upward**: at that budget a run with a schedule of "
        "its own would have done better. Only the ends of runs are free of this.",
        "",
        *markdown_table(["FLOPs", "hours", grid.metric, "cell"], rows),
        "",
        f"![learning curves]({plot})",
        "",
    ]
    if series is None:
        return [*lines, "Too few budgets below the plateau to fit a law to.", ""]
    lines += [*fit_table([series]), "", *prediction_table([series]), ""]
    return [*lines, *(f"- {sentence}" for sentence in statements(series)), ""]


def to_content(
    grid: Scaling,
    points: Sequence[Point],
    analyses: Sequence[Analysis],
    budgets: Sequence[Budget],
    budget_fits: Series | None,
) -> dict[str, Any]:
    """The report's numbers as JSON."""
    return {
        "title": grid.title,
        "metric": grid.metric,
        "plateau": grid.plateau,
        "resamples": grid.resamples,
        "cells": [
            {
                "size": point.size,
                "volume": point.volume,
                "parameters": point.parameters,
                "amount": point.amount,
                "data": point.data,
                "unit": point.unit,
                "flops": point.flops,
                "seeds": list(point.runs),
                "seconds": [run["seconds"] for run in point.runs.values()],
                "best": [min(values[grid.metric] for _, values in run["curve"]) for run in point.runs.values()],
                "breakthrough": list(point.breakthroughs.values()),
                "censored": point.censored,
                **{a.quantity.name: [float(value) for value in a.quantity.values[point.name]] for a in analyses},
            }
            for point in points
        ],
        "quantities": {
            analysis.quantity.name: {
                "title": analysis.quantity.title,
                "not_fitted": analysis.excluded,
                "against": {axis: series_content(series) for axis, series in analysis.series.items()},
            }
            for analysis in analyses
        },
        "budgets": {
            "points": [asdict(budget) for budget in budgets],
            "fits": series_content(budget_fits) if budget_fits is not None else None,
        },
    }


def _estimate(estimate: Estimate) -> str:
    interval = f" ({estimate.low:.4g} to {estimate.high:.4g})" if estimate.resampled else ""
    return f"{estimate.value:.4g}{interval}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _seconds(point: Point) -> float:
    """Of all runs of the point."""
    return float(sum(run["seconds"] for run in point.runs.values()))
