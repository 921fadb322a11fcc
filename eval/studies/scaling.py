"""Scaling laws: a grid of model sizes and data volumes, for any task (docs/methods/ocr.md: scaling laws).

    sizes x volumes --> a grid of runs (`eval/grid/grid.py`), several seeds on its margins
                    --> losses and, for word recognition, errors (`eval/grid/measures.py`)
                    --> laws fitted with the largest held out (`eval/studies/scaling_fits.py`)
                    --> templates/scaling.md.j2

A run that never left the plateau (a loss that needs no picture: the prior of the language) is censored: it is listed,
and no law is fitted to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.commands import ScalingOptions
from eval.grid.grid import GridError
from eval.grid.measures import MeasuredGrid, measure_cell
from eval.grid.preparation import read_options, run_stages
from eval.grid.statistics import Measured
from eval.studies.markdown import plot_folder, write_report

if TYPE_CHECKING:
    from eval.studies.scaling_fits import Analysis, Budget, Series

LEAST = 3
"""Sizes, and volumes, of the smallest grid: a law has two parameters, and one point is held out."""
MARGINS = ("seeds", "sizes", "volumes")


@dataclass(frozen=True, kw_only=True)
class Scaling(MeasuredGrid):
    """The YAML of a scaling grid; its variants SIZE_VOLUME are made from `sizes` and `volumes`."""

    sizes: dict[str, dict[str, Any]]
    """Name -> overrides of the training configuration: the model's shape, the learning rate tuned for it."""
    volumes: dict[str, dict[str, Any]]
    """Name -> `amount`, the training samples, and the overrides that give a run this many."""
    margins: dict[str, list[Any]] = field(default_factory=dict)
    """`seeds`: further seeds of the cells of `sizes` and of those of `volumes`."""
    interior: bool = True
    """False trains only the cells of the margins: the row and the column that laws of one variable are fitted to."""
    plateau: float | None = None
    """Value of `metric` that a run must come below to have learned anything; null censors nothing."""
    resamples: int = 2000
    """Resamples of images and seeds, for the intervals."""

    def __post_init__(self) -> None:
        if self.variants:
            raise ValueError("variants: a scaling grid makes its own; give sizes and volumes")
        for name in ("sizes", "volumes"):
            if len(getattr(self, name)) < LEAST:
                raise ValueError(f"{name}: a scaling grid needs at least {LEAST}, got {len(getattr(self, name))}")
        for name, fields in self.volumes.items():
            if not isinstance(fields.get("amount"), int) or fields["amount"] < 1:
                raise ValueError(f"volumes.{name}: amount must be a number of samples, got {fields.get('amount')!r}")
        if unknown := sorted(set(self.margins) - set(MARGINS)):
            raise ValueError(f"margins: unknown field {unknown[0]!r}; known are {', '.join(MARGINS)}")
        for name in ("sizes", "volumes"):
            if unknown := [label for label in self.margins.get(name, []) if label not in getattr(self, name)]:
                raise ValueError(f"margins.{name}: {unknown[0]!r} is not among the {name}")
        if not self.interior and not (self.margins.get("sizes") or self.margins.get("volumes")):
            raise ValueError("interior: false leaves the cells of the margins, but margins names no sizes or volumes")
        if self.resamples < 1:
            raise ValueError(f"resamples: must be at least 1, got {self.resamples}")
        self.all_variants  # noqa: B018  two fields may set the same

    @cached_property
    def all_variants(self) -> dict[str, dict[str, Any]]:
        """SIZE_VOLUME -> the overrides of both."""
        made = {}
        for size, volume in product(self.sizes, self.volumes):
            if not (self.interior or self._on_margins(size, volume)):
                continue
            overrides = {name: value for name, value in self.volumes[volume].items() if name != "amount"}
            if both := sorted(set(overrides) & set(self.sizes[size])):
                raise ValueError(f"sizes.{size} and volumes.{volume} both set {both[0]}")
            made[variant_name(size, volume)] = {**self.sizes[size], **overrides}
        return made

    def seeds_of(self, variant: str) -> list[int]:
        """`seeds`, and those of the margins for the cells on them."""
        cells = product(self.sizes, self.volumes)
        names = {variant_name(size, volume) for size, volume in cells if self._on_margins(size, volume)}
        return list(dict.fromkeys([*self.seeds, *(self.margins.get("seeds", []) if variant in names else [])]))

    def _on_margins(self, size: str, volume: str) -> bool:
        return size in self.margins.get("sizes", []) or volume in self.margins.get("volumes", [])


def variant_name(size: str, volume: str) -> str:
    """Of the cells of one size and one volume."""
    return f"{size}_{volume}"


@dataclass(frozen=True)
class Point:
    """One size with one volume: its runs, all seeds."""

    size: str
    volume: str
    parameters: int
    amount: int
    """Training samples of the volume."""
    data: int
    """Different ones that a run saw, in the unit of the task (images, tokens)."""
    flops: float
    """Of one run's training."""
    unit: str
    runs: Mapping[int, Mapping[str, Any]]
    """{seed: content of cell.json}."""
    breakthroughs: dict[int, int | None]
    """{seed: first validated step below the plateau}."""

    @property
    def name(self) -> str:
        """The variant."""
        return variant_name(self.size, self.volume)

    @property
    def seconds(self) -> float:
        """Of all its runs."""
        return float(sum(run["seconds"] for run in self.runs.values()))

    @property
    def censored(self) -> bool:
        """Whether one of its runs stayed on the plateau."""
        return None in self.breakthroughs.values()

    def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(training FLOPs, mean over seeds) at the validations that all its runs have."""
        rows = list(zip(*(run["curve"] for run in self.runs.values()), strict=False))
        steps = next(iter(self.runs.values()))["steps"]
        flops = np.array([row[0][0] / steps * self.flops for row in rows])
        return flops, np.array([np.mean([values[metric] for _, values in row]) for row in rows])


def breakthrough(curve: list[Any], metric: str, plateau: float | None) -> int | None:
    """First validated step at which the metric is below the plateau; None if there is none."""
    return next((step for step, values in curve if plateau is None or values[metric] < plateau), None)


def points_of(grid: Scaling, measured: Measured) -> list[Point]:
    """The measured cells, by size and volume, small ones first."""
    points = []
    for size, volume in product(grid.sizes, grid.volumes):
        runs = measured.get(variant_name(size, volume), {})
        if not runs:
            continue
        first, amount = next(iter(runs.values())), grid.volumes[volume]["amount"]
        points.append(
            Point(
                size,
                volume,
                first["parameters"],
                amount,
                min(amount, first["samples"]) * first["units_per_sample"],
                first["flops"],
                first["unit"],
                runs,
                {seed: breakthrough(run["curve"], grid.metric, grid.plateau) for seed, run in runs.items()},
            )
        )
    return sorted(points, key=lambda point: (point.parameters, point.amount))


def write_scaling_report(grid: Scaling, measured: Measured, config: str) -> Path:
    """Writes the Markdown, a JSON file beside it, and the plots.

    Raises:
        GridError: nothing has been measured yet.
    """
    from eval.grid.resampling import seed_residuals
    from eval.studies.scaling_fits import analyse, budget_series
    from eval.studies.scaling_plots import save_budget_plot, save_quantity_plot

    points = points_of(grid, measured)
    if not points:
        raise GridError(f"{grid.output}: no measured cell yet")
    analyses = analyse(grid, points)
    budgets, budget_fits = budget_series(grid, points)
    folder = plot_folder(grid)
    for analysis in analyses:
        save_quantity_plot(grid, points, analysis, folder)
    if budgets:
        save_budget_plot(grid, points, budgets, budget_fits, folder)
    content = to_content(grid, points, analyses, budgets, budget_fits)
    Path(grid.report).with_suffix(".json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    excluded: dict[str, dict[str, list[str]]] = {}
    for analysis in analyses:
        for name, why in analysis.excluded.items():
            excluded.setdefault(analysis.quantity.name, {}).setdefault(why, []).append(f"`{name}`")
    return write_report(
        "scaling",
        grid,
        config,
        measured,
        unit=points[0].unit,
        hours=sum(point.seconds for point in points) / 3600,
        seen=sorted({run["samples"] * run["units_per_sample"] for point in points for run in point.runs.values()}),
        sizes=dict.fromkeys((point.size, point.parameters) for point in points),
        volumes=sorted({(point.amount, point.data, point.volume) for point in points}),
        points={(point.size, point.volume): point for point in points},
        analyses=analyses,
        one_seed=[a.quantity.name for a in analyses if not len(seed_residuals(list(a.quantity.values.values())))],
        excluded=excluded,
        budgets=budgets,
        budget_fits=budget_fits,
    )


def to_content(
    grid: Scaling,
    points: Sequence[Point],
    analyses: Sequence[Analysis],
    budgets: Sequence[Budget],
    budget_fits: Series | None,
) -> dict[str, Any]:
    """The report's numbers as JSON."""
    from eval.studies.scaling_fits import series_content

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


def run(options: ScalingOptions) -> None:
    """``python -m eval scaling``."""
    grid = read_options(options, Scaling)
    run_stages(
        grid,
        options.stage,
        lambda cell: measure_cell(cell, grid),
        lambda measured: write_scaling_report(grid, measured, options.config),
    )
