"""Resampling of measured cells: test images, paired over the cells, and seeds.

    images   one draw of images with replacement is applied to every cell, as all cells read the same images
    seeds    a cell's mean is moved by residuals of seeds (log value minus the mean of its cell), one for each of its
             runs, drawn from the residuals of all cells together: a cell with one seed has no residual of its own

The residuals are scaled by sqrt(S / (S - 1)) for their S seeds, which makes their variance that of the seeds.

Shapes: R resamples, C cells, S runs of a cell, I images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST = 0.5
"""Wrong images that a resample has at least: a cell without errors has no logarithm."""


def resample(
    values: Sequence[np.ndarray],
    count: int,
    seed: int,
    wrong: Sequence[np.ndarray] | None = None,
    residuals: np.ndarray | None = None,
) -> np.ndarray:
    """Resampled means of the cells.

    Args:
        values: for each cell, the values of its runs [S], greater than 0.
        count: R.
        seed: of the draws.
        wrong: for each cell, which images its runs got wrong [S, I]; the values are then the shares of wrong images.
        residuals: of seeds, if they are known from elsewhere; None takes those of the cells.

    Returns:
        [R, C].
    """
    rng = np.random.default_rng(seed)
    if wrong is None:
        means_RC = np.tile([value.mean() for value in values], (count, 1))
    else:
        shares_IC = np.stack([cell.mean(axis=0) for cell in wrong], axis=1).astype(np.float32)
        images = len(shares_IC)
        draws_RI = np.stack([np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(count)])
        means_RC = np.maximum((draws_RI.astype(np.float32) @ shares_IC).astype(float), LEAST) / images
    residuals = seed_residuals(values) if residuals is None else residuals
    if len(residuals):
        moves = [rng.choice(residuals, (count, len(value))).mean(axis=1) for value in values]
        means_RC = means_RC * np.exp(np.stack(moves, axis=1))
    return means_RC


def seed_residuals(values: Sequence[np.ndarray]) -> np.ndarray:
    """Residuals of the seeds of all cells that have several, in logarithms."""
    residuals = []
    for value in values:
        if len(value) > 1:
            logs = np.log(value)
            residuals.append((logs - logs.mean()) * np.sqrt(len(value) / (len(value) - 1)))
    return np.concatenate(residuals) if residuals else np.empty(0)
