"""Plots of the collapse measurements: models overlaid by layer, and frequent tokens in three components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.plots import PALETTE, figure

# (field of a layer, axis title, logarithmic)
PANELS = (
    ("diversity", "diversity d_M(Z)/‖Z‖", True),
    ("effective_dimension", "effective dimension d(ε)", False),
    ("share_top3", "variance share of 3 components", False),
)


def save_collapse_plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One line per model in each of three panels over the layers."""
    drawing = figure(12, 3.6)
    for number, (name, title, logarithmic) in enumerate(PANELS):
        axis = drawing.add_subplot(1, len(PANELS), number + 1)
        for colour, (model, result) in zip(_colours(len(results)), results.items(), strict=True):
            layers = result["layers"]
            x, y = [row["layer"] for row in layers], [row[name] for row in layers]
            axis.plot(x, y, label=model, color=colour, marker="o", markersize=3)
        if logarithmic:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("layer (0: embeddings)")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=120)


def save_scatter_plot(
    points: Mapping[int, Mapping[int, Sequence[Sequence[float]]]],
    layers: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    path: Path,
) -> None:
    """The most frequent tokens of chosen layers in their first three principal components, equal axes."""
    drawing = figure(4.2 * len(points), 4.4)
    for number, (layer, by_token) in enumerate(points.items()):
        axis: Any = drawing.add_subplot(1, len(points), number + 1, projection="3d")
        for colour, (token, positions) in zip(_colours(len(by_token)), by_token.items(), strict=True):
            x, y, z = zip(*positions, strict=True)
            axis.scatter(x, y, z, s=4, color=colour, label=repr(tokenizer.decode([token])))
        axis.set_title(f"layer {layer}, variance {layers[layer]['variance_top3']:.3g}", fontsize=10)
        axis.set_aspect("equal")
    axis.legend(fontsize=7, frameon=False)
    drawing.savefig(path, dpi=120)


def _colours(number: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(number)]
