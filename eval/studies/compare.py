"""Variants of any task beside a base: validation metric and, for word recognition, word error, seed by seed.

The runs are a grid (`eval/grid/grid.py`), measured as every grid of any task is (`eval/grid/measures.py`);
`eval/studies/compare_report.py` writes the tables and the plot. What language models have besides, collapse metrics and
latency, is `python -m eval ablation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.commands import CompareOptions
from eval.grid.measures import MeasuredGrid, measure_cell
from eval.grid.preparation import read_options, run_stages


@dataclass(frozen=True, kw_only=True)
class Comparison(MeasuredGrid):
    """The YAML of a comparison."""

    base: str
    """Variant that the others are compared with."""
    axis: dict[str, float] = field(default_factory=dict)
    """Variant -> a number that it stands for: the x axis of the plot; without it, variants stand side by side."""
    axis_title: str = ""
    """What the numbers are."""
    resamples: int = 2000
    """Resamples of images and seeds, for the intervals of word errors."""

    def __post_init__(self) -> None:
        if self.base not in self.variants:
            raise ValueError(f"base is {self.base!r}, which is not among the variants")
        if self.axis and set(self.axis) != set(self.variants):
            odd = sorted(set(self.axis) ^ set(self.variants))[0]
            raise ValueError(f"axis: {odd!r} must be among the variants and have a number")
        if self.resamples < 1:
            raise ValueError(f"resamples: must be at least 1, got {self.resamples}")


def run(options: CompareOptions) -> None:
    """``python -m eval compare``."""
    from eval.studies.compare_report import write_comparison

    grid = read_options(options, Comparison)
    run_stages(
        grid,
        options.stage,
        lambda cell: measure_cell(cell, grid),
        lambda measured: write_comparison(grid, measured, options.config),
    )
