"""A picture of originals and, under each, what the tokenizer gives back."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Comparison:
    """Collects the first images of a set and draws them.

    Args:
        shown: how many.
    """

    def __init__(self, shown: int) -> None:
        self._shown = shown
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, originals_BHWC: np.ndarray, reconstructions_BHWC: np.ndarray) -> None:
        """Takes a batch, both uint8 [B, S, S, 3]."""
        wanted = self._shown - len(self._pairs)
        self._pairs += list(zip(originals_BHWC, reconstructions_BHWC, strict=True))[:wanted]

    def draw(self, path: Path, title: str) -> None:
        """Writes a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.6 * len(self._pairs) + 0.4, 3.8), layout="constrained")
        axes = figure.subplots(2, len(self._pairs), squeeze=False)
        for column, pair in enumerate(self._pairs):
            for row, image in enumerate(pair):
                axes[row, column].imshow(image, interpolation="nearest")
                axes[row, column].set(xticks=[], yticks=[])
        for row, label in enumerate(("original", "reconstruction")):
            axes[row, 0].set_ylabel(label)
        figure.suptitle(title, fontsize=8)
        figure.savefig(path, dpi=120)
