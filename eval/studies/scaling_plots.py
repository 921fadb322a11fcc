"""Plots of a scaling grid: fits on logarithmic axes with what was held out, heat maps, learning curves by compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.plots import PALETTE, figure
from eval.studies.scaling import Point, Scaling
from eval.studies.scaling_fits import AXES, Analysis, Budget, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = {"power": "#1a1a1a", "offset": "#c2185b"}
"""Laws that are drawn, and their colours."""
DPI = 120


def save_quantity_plot(grid: Scaling, points: Sequence[Point], analysis: Analysis, folder: Path) -> None:
    """NAME.png: the quantity against parameters, data and compute, and as a heat map."""
    drawing = figure(15, 7.6)
    axes = drawing.subplots(2, 2)
    labels = {"parameters": "parameters N", "data": f"training {points[0].unit} D", "compute": "training FLOPs C"}
    for panel, (axis, label) in zip(axes.flat, labels.items(), strict=False):
        _draw_points(panel, axis, points, analysis)
        if axis in analysis.series:
            _draw_fits(panel, analysis.series[axis])
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(label)
        panel.set_ylabel(analysis.quantity.title)
        panel.grid(alpha=0.25, which="both")
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _draw_heat_map(axes.flat[3], points, analysis)
    drawing.suptitle(grid.title, fontsize=11)
    drawing.savefig(folder / f"{analysis.quantity.name}.png", dpi=DPI)


def _draw_points(panel: Axes, axis: str, points: Sequence[Point], analysis: Analysis) -> None:
    """Every cell faintly, one colour for each line of the other axis; a cross for those that are not fitted."""
    others = list(dict.fromkeys(point.volume if axis != "data" else point.size for point in points))
    for point in points:
        colour = PALETTE[others.index(point.volume if axis != "data" else point.size) % len(PALETTE)]
        value = analysis.quantity.values[point.name].mean()
        marker = "x" if point.name in analysis.excluded else "o"
        panel.plot(AXES[axis](point), value, marker, color=colour, alpha=0.45, markersize=4)
    for number, name in enumerate(others):
        panel.plot([], [], "o", color=PALETTE[number % len(PALETTE)], alpha=0.45, markersize=4, label=name)
    if analysis.excluded:
        panel.plot([], [], "x", color="grey", label="not fitted")


def _draw_fits(panel: Axes, series: Series) -> None:
    """The fits of all points as lines, those without the largest dashed, and the largest as a ring."""
    line_N1 = np.geomspace(series.x.min(), 2 * series.x.max(), 80)[:, None]
    for name, colour in SHOWN.items():
        if name in series.fits:
            fit = series.fits[name]
            label = f"{name}: {fit.law.formula}"
            panel.plot(
                line_N1[:, 0], fit.law.predict(fit.theta_1P, line_N1)[0], color=colour, linewidth=1.4, label=label
            )
        for rest in series.rest.values():
            if name in rest:
                law = rest[name].law
                y_N = law.predict(rest[name].theta_1P, line_N1)[0]
                panel.plot(line_N1[:, 0], y_N, "--", color=colour, linewidth=1.2, label=f"{name}, the largest held out")
    panel.plot(series.x, series.y, "o", color="black", markersize=4, label="fitted")
    for predictions in series.predictions.values():
        for entry in predictions:
            at = series.x[series.names.index(entry.point)]
            panel.plot(at, entry.observed, "o", markerfacecolor="none", color="black", markersize=11)
            if entry.law in SHOWN:
                low = max(entry.predicted.value - entry.predicted.low, 0.0)
                high = max(entry.predicted.high - entry.predicted.value, 0.0)
                colour = SHOWN[entry.law]
                error = [[low], [high]]
                panel.errorbar(at, entry.predicted.value, yerr=error, fmt="_", color=colour, capsize=4, markersize=10)
    panel.plot([], [], "o", markerfacecolor="none", color="black", markersize=8, label="held out")


def _draw_heat_map(panel: Axes, points: Sequence[Point], analysis: Analysis) -> None:
    sizes = list(dict.fromkeys(point.size for point in points))
    volumes = [name for _, name in sorted({(point.amount, point.volume) for point in points})]
    values = np.full((len(sizes), len(volumes)), np.nan)
    for point in points:
        row, column = sizes.index(point.size), volumes.index(point.volume)
        values[row, column] = analysis.quantity.values[point.name].mean()
        mark = "\nnot fitted" if point.name in analysis.excluded else ""
        text = f"{values[row, column]:.3f}{mark}"
        panel.text(column, row, text, ha="center", va="center", fontsize=8, color="white",
                   bbox={"facecolor": "black", "alpha": 0.35, "linewidth": 0})  # fmt: skip
    panel.imshow(values, aspect="auto", cmap="viridis_r")
    panel.set_xticks(range(len(volumes)), volumes)
    panel.set_yticks(range(len(sizes)), sizes)
    panel.set_xlabel("volume")
    panel.set_title(analysis.quantity.title, fontsize=9, loc="left")


def save_budget_plot(
    grid: Scaling, points: Sequence[Point], budgets: Sequence[Budget], series: Series | None, folder: Path
) -> None:
    """budgets.png: every learning curve over compute, and the best at each budget."""
    drawing = figure(8, 4.8)
    panel = drawing.add_subplot()
    sizes = list(dict.fromkeys(point.size for point in points))
    for point in points:
        flops, values = point.curve(grid.metric)
        colour = PALETTE[sizes.index(point.size) % len(PALETTE)]
        style = ":" if point.censored else "-"
        panel.plot(flops[flops > 0], values[flops > 0], style, color=colour, alpha=0.5, linewidth=1)
    for number, size in enumerate(sizes):
        panel.plot([], [], color=PALETTE[number % len(PALETTE)], label=size)
    if series is not None:
        _draw_fits(panel, series)
    else:
        panel.plot([b.flops for b in budgets], [b.value for b in budgets], "ko", markersize=4, label="best at a budget")
    if grid.plateau is not None:
        panel.axhline(grid.plateau, color="grey", linestyle=":", linewidth=1)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("training FLOPs (in the middle of a run: biased upward; dotted: censored)")
    panel.set_ylabel(f"validation {grid.metric}")
    panel.grid(alpha=0.25, which="both")
    panel.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    drawing.savefig(folder / "budgets.png", dpi=DPI)
