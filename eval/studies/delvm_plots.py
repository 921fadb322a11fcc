"""Plots of the DeLVM experiment: bars of the 2 x 2, curves per task, the dose curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from eval.grid.statistics import Measured, deviation
from eval.plots import PALETTE, figure

Cells = Mapping[int, Mapping[str, Any]]
"""{seed: content of cell.json}."""


def _losses(cells: Cells, task: str) -> list[float]:
    return [cell["tasks"][task]["loss"] for cell in cells.values()]


def save_balance_plot(arms: Measured, tasks: Sequence[str], path: Path) -> None:
    """One panel per task: the arms' losses as bars with the spread over seeds, and every seed as a dot."""
    drawing = figure(3.6 * len(tasks), 3.2)
    for axis, task in zip(drawing.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for number, cells in enumerate(arms.values()):
            values, colour = _losses(cells, task), PALETTE[number]
            axis.bar(number, mean(values), yerr=deviation(values), color=colour, alpha=0.75, width=0.7)
            axis.plot([number] * len(values), values, "o", color="black", markersize=2.5)
        every = [value for cells in arms.values() for value in _losses(cells, task)]
        margin = 0.15 * (max(every) - min(every)) + 0.01
        axis.set_ylim(min(every) - 3 * margin, max(every) + margin)
        axis.set_xticks(range(len(arms)), list(arms), fontsize=7, rotation=20, ha="right")
        axis.set_title(task, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    drawing.supylabel("validation loss, nats per code (axes do not begin at 0)", fontsize=8)
    drawing.savefig(path, dpi=120)


def save_curves_plot(arms: Measured, tasks: Sequence[str], path: Path) -> None:
    """One panel per task: validation loss over steps, mean over seeds, with the band of the seeds."""
    drawing = figure(3.6 * len(tasks), 3.2)
    for axis, task in zip(drawing.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for number, (name, cells) in enumerate(arms.items()):
            points: dict[float, list[float]] = {}
            for cell in cells.values():
                for step, losses in cell["curve"]:
                    if step and task in losses:  # before the first step all are ln V, and nothing else could be seen
                        points.setdefault(step, []).append(losses[task])
            steps, colour = sorted(points), PALETTE[number % len(PALETTE)]
            axis.plot(steps, [mean(points[step]) for step in steps], color=colour, linewidth=1.3, label=name)
            low, high = ([edge(points[step]) for step in steps] for edge in (min, max))
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(task, fontsize=9, loc="left")
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    drawing.supylabel("validation loss, nats per code", fontsize=8)
    drawing.axes[0].legend(frameon=False, fontsize=7)
    drawing.savefig(path, dpi=120)


def save_dose_plot(points: Mapping[str, Mapping[int, Cells]], base: Cells, task: str, path: Path) -> None:
    """Two panels on one scale: validation loss over copies of each pair, and over new images.

    Args:
        points: {"copies" | "images": {how many: cells}}.
        base: cells with the fewest images and no copies, drawn as a line through both panels.
        task: whose loss.
        path: PNG to write.
    """
    drawing = figure(7.2, 3.0)
    level = mean(_losses(base, task))
    for axis, (name, found) in zip(drawing.subplots(1, 2, sharey=True), points.items(), strict=True):
        counts = sorted(found)
        values = [_losses(found[count], task) for count in counts]
        axis.errorbar(
            counts, list(map(mean, values)), list(map(deviation, values)), color=PALETTE[0], marker="o", capsize=2
        )
        axis.axhline(level, color=PALETTE[1], linewidth=1, linestyle="--", label="fewest images, no copies")
        axis.set_xscale("log")
        axis.set_xticks(counts, list(map(str, counts)))
        axis.set_xlabel(f"{name}" + (" of each pair" if name == "copies" else " of their own"), fontsize=8)
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    drawing.axes[0].set_ylabel(f"validation loss, {task}", fontsize=8)
    drawing.axes[0].legend(frameon=False, fontsize=7)
    drawing.savefig(path, dpi=120)
