"""Fits of a scaling grid: each quantity against parameters, data and compute, with the largest held out.

    parameters   the row of the largest volume         held out: the largest model
    data         the column of the largest model       held out: the largest volume
    compute      the cells that none with as little compute betters; held out: the one of the most compute
    joint        all cells, against parameters and data together; held out: the largest models, the largest volumes

A prediction is judged on what was held out, by its signed relative error, beside those of two baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.grid.measures import Quantity, quantities_of
from eval.grid.power_law import BASELINES, JOINT, LAWS, Estimate, Fit, Law, fit_law
from eval.grid.resampling import resample, seed_residuals
from eval.studies.scaling import Point, Scaling

LARGEST_ERROR = 0.95
"""Errors above are not fitted (docs/methods/ocr.md: scaling laws)."""
BUDGETS = 10
RESAMPLING_SEED = 0

Variables = Callable[[Point], Any]
AXES: dict[str, Variables] = {
    "parameters": lambda point: point.parameters,
    "data": lambda point: point.data,
    "compute": lambda point: point.flops,
}


@dataclass(frozen=True)
class Prediction:
    """What a law says of a point that it was not fitted to."""

    point: str
    law: str
    observed: float
    predicted: Estimate

    @property
    def relative_error(self) -> float:
        """(predicted - observed) / observed."""
        return self.predicted.value / self.observed - 1

    @property
    def covered(self) -> bool:
        """Whether the interval has the observed value in it."""
        return self.predicted.covers(self.observed)

    @property
    def missed(self) -> bool:
        """Whether it is a null result: a law that was stated before, whose interval leaves out the observed value."""
        return self.predicted.resampled and not self.covered and self.law not in {law.name for law in BASELINES}


@dataclass(frozen=True)
class Series:
    """Points along an axis, and what was fitted to them."""

    axis: str
    x: np.ndarray
    """[N], or [N, 2] for the joint law: parameters, data."""
    y: np.ndarray
    names: list[str]
    fits: dict[str, Fit]
    """Of all points, by law."""
    rest: dict[str, dict[str, Fit]]
    """{what was held out: fits of the rest, by law}."""
    predictions: dict[str, list[Prediction]]
    """{what was held out: of each law and each of its points}."""

    def errors(self, held_out: str) -> dict[str, float]:
        """{law: mean absolute relative error of what was held out}, the best first."""
        by_law: dict[str, list[float]] = {}
        for entry in self.predictions[held_out]:
            by_law.setdefault(entry.law, []).append(abs(entry.relative_error))
        means = {law: float(np.mean(errors)) for law, errors in by_law.items()}
        return {law: means[law] for law in sorted(means, key=lambda law: means[law])}


@dataclass(frozen=True)
class Analysis:
    """All that is known of one quantity."""

    quantity: Quantity
    excluded: dict[str, str]
    """{variant: why no law is fitted to it}."""
    series: dict[str, Series]


def analyse(grid: Scaling, points: Sequence[Point]) -> list[Analysis]:
    """Fits every law to every quantity."""
    found = []
    for quantity in quantities_of(grid, {point.name: point.runs for point in points}):
        excluded = {point.name: why for point in points if (why := _why_excluded(point, quantity))}
        used = [point for point in points if point.name not in excluded]
        series: dict[str, Series] = {}
        if used:
            wrong = None if quantity.wrong is None else [quantity.wrong[point.name] for point in used]
            values = [quantity.values[point.name] for point in used]
            moved_RC = resample(values, grid.resamples, RESAMPLING_SEED, wrong)
            means = np.array([value.mean() for value in values])
            for axis, chosen in _chosen(points, used, means).items():
                if len(chosen) > 1:
                    picked = [used[index] for index in chosen]
                    x = np.array([AXES[axis](point) for point in picked], dtype=float)
                    held = {"the largest": [len(chosen) - 1]} if _reaches_end(axis, picked, points) else {}
                    laws = (*LAWS, *BASELINES)
                    names = [point.name for point in picked]
                    series[axis] = _fit(axis, x, means[chosen], moved_RC[:, chosen], names, laws, held)
            if len(used) > JOINT.points:
                x = np.array([(point.parameters, point.data) for point in used], dtype=float)
                held = {
                    title: [index for index, point in enumerate(used) if getattr(point, name) == largest]
                    for name, title in (("parameters", "the largest model"), ("amount", "the largest volume"))
                    for largest in [max(getattr(point, name) for point in points)]
                }
                names = [point.name for point in used]
                series["joint"] = _fit("joint", x, means, moved_RC, names, (JOINT,), held)
        found.append(Analysis(quantity, excluded, series))
    return found


def _why_excluded(point: Point, quantity: Quantity) -> str:
    """The reason, or nothing."""
    value = quantity.values[point.name].mean()
    if point.censored:
        count = sum(step is None for step in point.breakthroughs.values())
        return f"censored: {count} of {len(point.runs)} runs stayed on the plateau"
    if not np.isfinite(value):
        return "not a number"
    if quantity.wrong is not None and value > LARGEST_ERROR:
        return f"error above {LARGEST_ERROR:.0%}"
    return "" if value > 0 else "no errors at all: there is no logarithm"


def _chosen(points: Sequence[Point], used: Sequence[Point], means: np.ndarray) -> dict[str, list[int]]:
    """Numbers of the used points on each axis, in its order."""
    volume, size = max(point.amount for point in points), max(point.parameters for point in points)
    numbers = range(len(used))
    frontier: list[int] = []
    for index in sorted(numbers, key=lambda number: (used[number].flops, means[number])):
        if not frontier or means[index] < means[frontier[-1]]:
            frontier.append(index)
    return {
        "parameters": [number for number in numbers if used[number].amount == volume],
        "data": [number for number in numbers if used[number].parameters == size],
        "compute": frontier,
    }


def _reaches_end(axis: str, picked: Sequence[Point], points: Sequence[Point]) -> bool:
    """Whether the last of the points is the grid's largest: an excluded one cannot be predicted."""
    return axis == "compute" or AXES[axis](picked[-1]) == max(map(AXES[axis], points))


def _fit(
    axis: str,
    x: np.ndarray,
    y: np.ndarray,
    moved_RN: np.ndarray,
    names: list[str],
    laws: Sequence[Law],
    held: dict[str, list[int]],
) -> Series:
    """Fits laws to all points, and again without each of the held-out groups."""
    rest: dict[str, dict[str, Fit]] = {}
    predictions: dict[str, list[Prediction]] = {}
    for title, group in held.items():
        keep = [index for index in range(len(y)) if index not in group]
        rest[title] = _fits(laws, x[keep], y[keep], moved_RN[:, keep])
        predictions[title] = [
            Prediction(names[index], law, float(y[index]), fit.predict(x[index]))
            for law, fit in rest[title].items()
            for index in group
        ]
    return Series(axis, x, y, names, _fits(laws, x, y, moved_RN), rest, predictions)


def _fits(laws: Sequence[Law], x: np.ndarray, y: np.ndarray, moved_RN: np.ndarray) -> dict[str, Fit]:
    """Those laws that the points determine."""
    return {law.name: fit_law(law, x, y, moved_RN) for law in laws if len(y) >= law.points}


@dataclass(frozen=True)
class Budget:
    """The best of all learning curves at one compute budget."""

    flops: float
    value: float
    point: str
    hours: float
    """Of that run, up to there."""


def budget_series(grid: Scaling, points: Sequence[Point]) -> tuple[list[Budget], Series | None]:
    """The lowest metric that any run has reached within fixed budgets, from the learning curves, and its fits.

    Points in the middle of a run whose learning rate decays are biased upward: the rate has not fallen yet.
    """
    curves = {}
    for point in points:
        flops, values = point.curve(grid.metric)
        trained = flops > 0
        if trained.any() and not point.censored:
            curves[point.name] = point, flops[trained], np.minimum.accumulate(values[trained])
    if not curves:
        return [], None
    budgets = []
    begin, end = min(flops[0] for _, flops, _ in curves.values()), max(flops[-1] for _, flops, _ in curves.values())
    for budget in np.geomspace(begin, end, BUDGETS):
        found = []
        for name, (point, flops, values) in curves.items():
            if flops[0] <= budget * (1 + 1e-9):
                value = float(np.interp(np.log(budget), np.log(flops), values))  # a run that has ended stays as it is
                seconds = np.mean([run["seconds"] for run in point.runs.values()]) * min(budget / point.flops, 1.0)
                found.append(Budget(float(budget), value, name, float(seconds / 3600)))
        budgets.append(min(found, key=lambda entry: entry.value))
    used = [entry for entry in budgets if grid.plateau is None or entry.value < grid.plateau]
    if len(used) < 3:
        return budgets, None
    x, y = (np.array([getattr(entry, name) for entry in used]) for name in ("flops", "value"))
    residuals = seed_residuals(
        [np.array([run["valid"][grid.metric] for run in point.runs.values()]) for point, _, _ in curves.values()]
    )
    moved = resample([np.array([value]) for value in y], grid.resamples, RESAMPLING_SEED, residuals=residuals)
    held = {"the largest": [len(used) - 1]}
    return budgets, _fit("budget", x, y, moved, [entry.point for entry in used], (*LAWS, *BASELINES), held)


def series_content(series: Series) -> dict[str, Any]:
    """A series as JSON."""
    return {
        "points": [
            {"cell": name, "x": x.tolist(), "y": float(y)}
            for name, x, y in zip(series.names, series.x, series.y, strict=True)
        ],
        "fits": {law: _fit_content(fit) for law, fit in series.fits.items()},
        "held_out": {
            title: {
                "fits": {law: _fit_content(fit) for law, fit in series.rest[title].items()},
                "predictions": [
                    {**asdict(entry), "predicted": entry.predicted._asdict()}
                    | {"relative_error": entry.relative_error, "covered": entry.covered}
                    for entry in predictions
                ],
            }
            for title, predictions in series.predictions.items()
        },
    }


def _fit_content(fit: Fit) -> dict[str, Any]:
    constants = {name: estimate._asdict() for name, estimate in fit.constants().items()}
    return {"formula": fit.law.formula, "constants": constants, "flat": fit.flat()}
