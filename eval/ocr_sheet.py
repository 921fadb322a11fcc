"""A picture of what was read wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eval.plots import figure

COLUMNS = 5


class WorstError(NamedTuple):
    """A word that was read wrongly."""

    image: Image.Image
    label: str
    reading: str
    similarity: float
    """1 - NED."""


def save_sheet(errors: Sequence[WorstError], title: str, path: Path) -> None:
    """Images with label and reading, as PNG; without errors, only the title."""
    rows = max(1, -(-len(errors) // COLUMNS))
    drawing = figure(2.2 * COLUMNS, 0.4 + 0.95 * rows)
    drawing.suptitle(title)
    for number, error in enumerate(errors):
        axis = drawing.add_subplot(rows, COLUMNS, number + 1)
        axis.imshow(error.image.resize((128, 32)))
        axis.set_axis_off()
        # A label may hold what matplotlib would take for a formula.
        text = f"{error.label}\n{error.reading or '(nothing)'}".replace("$", r"\$")
        axis.set_title(text, fontsize=7, pad=2)
    drawing.savefig(path)
