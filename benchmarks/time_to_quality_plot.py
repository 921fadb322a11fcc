"""Bits per byte against seconds: the plot of `benchmarks/time_to_quality.py`, and curves of others beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common.untrusted_files import read_json
from eval.plots import PALETTE, figure, style_axis


def draw(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bits per byte against seconds: a row for every size, a panel for the mean and for each language.

    Args:
        curves: each with name, size, and points of seconds and bits_per_byte; those of one name share a colour.
        path: PNG to write.
    """
    sizes = list(dict.fromkeys(curve["size"] for curve in curves))
    names = list(dict.fromkeys(curve["name"] for curve in curves))
    languages = sorted({name for curve in curves for point in curve["points"] for name in point["bits_per_byte"]})
    panels = ["mean", *languages]
    drawing = figure(4.2 * len(panels), 3.4 * len(sizes))
    for row, size in enumerate(sizes):
        for column, panel in enumerate(panels):
            axis = drawing.add_subplot(len(sizes), len(panels), row * len(panels) + column + 1)
            style_axis(axis, f"{size}: {panel}, bits per byte", "seconds since the launch")
            labelled: set[str] = set()
            for curve in (curve for curve in curves if curve["size"] == size):
                values = [point["bits_per_byte"] for point in curve["points"]]
                heights = [mean(value.values()) if panel == "mean" else value.get(panel) for value in values]
                seconds, colour = [point["seconds"] for point in curve["points"]], names.index(curve["name"])
                axis.plot(seconds, heights, marker="o", markersize=3.5, color=PALETTE[colour % len(PALETTE)],
                          label=None if curve["name"] in labelled else curve["name"])  # fmt: skip
                labelled.add(curve["name"])
            if column == 0:
                axis.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=120)


def other_curves(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What --also names, read before anything is run. Raises `ValueError` where it is not such a list."""
    curves = [(file, curve) for file in files for curve in read_json(file, ValueError)]
    for file, curve in curves:
        try:
            usable = bool(curve["name"] and curve["size"] and curve["points"])
            usable &= all(point["seconds"] + mean(point["bits_per_byte"].values()) > 0 for point in curve["points"])
        except (AttributeError, KeyError, TypeError, ValueError):
            usable = False
        if not usable:
            raise ValueError(f"{file}: not a list of curves as --help shows one: {json.dumps(curve)[:200]}")
    return [curve for _, curve in curves]
