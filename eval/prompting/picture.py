"""A picture of visual prompting: one row per query, with its example pairs, the truth, and what each model answered."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from eval.plots import figure

INCHES = 0.95
COLOURS = 128
"""Of the palette: photographs are half as large with it, and look the same at this size."""


class GridRow(NamedTuple):
    """One query; images are uint8 [S, S, 3]."""

    examples: Sequence[tuple[np.ndarray, np.ndarray]]
    """Input and target of each example pair."""
    query: np.ndarray
    truth: np.ndarray
    answers: Mapping[str, np.ndarray]
    """What each model answered, by its name."""

    def images(self) -> dict[str, np.ndarray]:
        """The row's images by column title, from left to right."""
        named: dict[str, np.ndarray] = {}
        for number, (shown, target) in enumerate(self.examples, start=1):
            named |= {f"example {number}": shown, f"target {number}": target}
        return {**named, "query": self.query, "truth": self.truth, **self.answers}


def save_grid(rows: Sequence[GridRow], title: str, path: Path) -> None:
    """Writes the rows as PNG."""
    columns = list(rows[0].images())
    drawing = figure(INCHES * len(columns), 0.4 + INCHES * len(rows))
    drawing.suptitle(title, fontsize=9)
    axes = drawing.subplots(len(rows), len(columns), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, image in zip(line, row.images().values(), strict=True):
            axis.imshow(image)
            axis.set_axis_off()
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name.replace("$", r"\$"), fontsize=7, pad=2)
    pixels = io.BytesIO()
    drawing.savefig(pixels, dpi=120)
    Image.open(pixels).convert("RGB").quantize(COLOURS).save(path, optimize=True)
