"""Pictures of words with what was read in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eval.plots import figure

COLUMNS = 5


class ReadWord(NamedTuple):
    """A word and how it was read."""

    image: Image.Image
    label: str
    reading: str
    similarity: float
    """1 - NED: 1 for a word that was read rightly."""


def save_sheet(words: Sequence[ReadWord], title: str, path: Path) -> None:
    """Images with label and reading (red where it is wrong), as PNG; without words, only the title."""
    rows = max(1, -(-len(words) // COLUMNS))
    drawing = figure(2.2 * COLUMNS, 0.4 + 0.95 * rows)
    drawing.suptitle(title)
    for number, word in enumerate(words):
        axis = drawing.add_subplot(rows, COLUMNS, number + 1)
        axis.imshow(word.image.resize((128, 32)))
        axis.set_axis_off()
        # A label may hold what matplotlib would take for a formula.
        text = f"{word.label}\n{word.reading or '(nothing)'}".replace("$", r"\$")
        axis.set_title(text, fontsize=7, pad=2, color="black" if word.similarity == 1 else "#b3261e")
    drawing.savefig(path)
