"""Variants of any task beside a base: validation metric and, for word recognition, word error, seed by seed.

The runs are a grid (`eval/grid/grid.py`), measured as every grid of any task is (`eval/grid/measures.py`). For language
models, `measure` asks for more: metrics of collapse by layer, and latency. An ablation is a comparison with both.
Beside the cells lies latency.json: milliseconds per generated token, all variants in turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from eval.commands import CollapseOptions, CompareOptions
from eval.grid.grid import Cell, Grid, GridError, trained_cells
from eval.grid.measures import BENCHMARKS, MeasuredGrid, Quantity, measure_cell, quantities_of
from eval.grid.power_law import Estimate, interval
from eval.grid.preparation import read_options, run_stages
from eval.grid.resampling import resample
from eval.grid.statistics import Measured, deviation, paired_difference, valid_metric
from eval.studies.markdown import plot_folder, write_report

COLLAPSE, LATENCY = "collapse", "latency"
LAYER_METRICS = {"effective_dimension": ("Effective dimension d(0.8)", 1), "diversity": ("Diversity d_M(Z)/‖Z‖", 4)}
"""Metrics of collapse in the report, their titles and digits."""
RESAMPLING_SEED = 0


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
    measure: list[str] = field(default_factory=list)
    """Language models: what to measure besides, of `collapse` (on `text`) and `latency`."""
    text: list[str] = field(default_factory=list)
    """Held-out files for the metrics of collapse (.jsonl, .txt, ..., also compressed)."""
    tokens: int = 20_000
    """Held-out tokens for them."""
    latency_rounds: int = 9
    """Interleaved rounds of the latency measurement; 0 leaves it out."""

    def __post_init__(self) -> None:
        if self.base not in self.variants:
            raise ValueError(f"base is {self.base!r}, which is not among the variants")
        if self.axis and set(self.axis) != set(self.variants):
            odd = sorted(set(self.axis) ^ set(self.variants))[0]
            raise ValueError(f"axis: {odd!r} must be among the variants and have a number")
        if self.resamples < 1:
            raise ValueError(f"resamples: must be at least 1, got {self.resamples}")
        if unknown := sorted(set(self.measure) - {COLLAPSE, LATENCY}):
            raise ValueError(f"measure: unknown {unknown[0]!r}; known are {COLLAPSE}, {LATENCY}")
        if COLLAPSE in self.measure and not self.text:
            raise ValueError("text: measuring collapse needs held-out files")
        if self.text and COLLAPSE not in self.measure:
            raise ValueError(f"text: nothing reads it; ask for collapse, as by measure: [{COLLAPSE}, {LATENCY}]")


def measure(cell: Cell, grid: Comparison) -> dict[str, Any]:
    """The content of a cell's cell.json: what every task has, and the metrics of collapse if they are asked for."""
    found = measure_cell(cell, grid)
    if COLLAPSE in grid.measure:
        from eval.models import load_model
        from eval.probes.collapse import measure as measure_collapse

        options = CollapseOptions(model=[], text=grid.text, output="", tokens=grid.tokens)
        text = [Path(path) for path in grid.text]
        found[COLLAPSE] = measure_collapse(load_model(str(cell.directory)), text, options)["layers"]
    return found


def measure_latency(grid: Grid, rounds: int) -> dict[str, dict[str, float]]:
    """Latency of one trained cell of every variant, from latency.json if it has been measured before."""
    path = Path(grid.output) / "latency.json"
    if rounds and not path.is_file():
        from eval.models import load_model
        from eval.probes.latency import compare_latency

        first = {cell.variant: cell for cell in trained_cells(grid) if cell.seed == grid.seeds[0]}
        models = {name: load_model(str(cell.directory)).model for name, cell in first.items()}
        figures = compare_latency(models, rounds)
        path.write_text(json.dumps({name: asdict(figure) for name, figure in figures.items()}, indent=1))
    return json.loads(path.read_text()) if path.is_file() else {}


class Difference(NamedTuple):
    """A variant minus the base."""

    estimate: Estimate
    seeds: int
    """Seeds that both have."""

    @property
    def judgement(self) -> str:
        """Lower, higher, or not distinguishable, by the interval."""
        if self.seeds and not np.isfinite(self.estimate.value):
            return "a run has no finite value"
        if not np.isfinite(self.estimate.low):
            return "one common seed: no statement about noise"
        if self.estimate.covers(0.0):
            return "not distinguishable"
        return "lower" if self.estimate.value < 0 else "higher"


def differences(grid: Comparison, measured: Measured, quantity: Quantity) -> dict[str, Difference]:
    """Of every variant but the base, on the seeds that both have.

    A validation metric has Student's interval over the paired differences of seeds. A word error has the percentile
    interval over resampled test images, the same for both variants, and seeds.
    """
    found = {}
    for variant in measured:
        if variant == grid.base:
            continue
        pairs = [(list(measured[variant]), variant), (list(measured[grid.base]), grid.base)]
        if quantity.wrong is None:
            values = [dict(zip(seeds, quantity.values[name], strict=True)) for seeds, name in pairs]
            paired = paired_difference(*values)
            low, high = paired.mean - paired.half_width, paired.mean + paired.half_width
            found[variant] = Difference(Estimate(paired.mean, low, high), paired.seeds)
            continue
        common = [seed for seed in measured[variant] if seed in measured[grid.base]]
        wrong = [quantity.wrong[name][[seeds.index(seed) for seed in common]] for seeds, name in pairs]
        if not common:
            found[variant] = Difference(Estimate(np.nan, -np.inf, np.inf), 0)
            continue
        shares = [images.mean(axis=1) for images in wrong]
        moved_R2 = resample(shares, grid.resamples, RESAMPLING_SEED, wrong)
        value = float(shares[0].mean() - shares[1].mean())
        found[variant] = Difference(interval(value, moved_R2[:, 0] - moved_R2[:, 1]), len(common))
    return found


def write_comparison(grid: Comparison, measured: Measured, latency: Mapping[str, Any], config: str) -> Path:
    """Writes the Markdown, a JSON file beside it, comparison.png and, with metrics of collapse, layers.png.

    Raises:
        GridError: no cell of the base has been measured yet, or some were measured without collapse.
    """
    if grid.base not in measured:
        raise GridError(f"{grid.output}: no measured cell of the base variant {grid.base!r} yet")
    quantities = quantities_of(grid, measured)
    found = {quantity.name: differences(grid, measured, quantity) for quantity in quantities}
    _save_plot(grid, measured, quantities)
    layers = mean_layers(grid, measured) if COLLAPSE in grid.measure else []
    names = list(next(iter(measured[grid.base].values())).get(BENCHMARKS, {}))
    content = {
        quantity.name: {
            "title": quantity.title,
            "values": {variant: values.tolist() for variant, values in quantity.values.items()},
            "minus_base": {
                variant: {**d.estimate._asdict(), "seeds": d.seeds, "judgement": d.judgement}
                for variant, d in found[quantity.name].items()
            },
        }
        for quantity in quantities
    }
    Path(grid.report).with_suffix(".json").write_text(json.dumps({"base": grid.base, **content}, indent=1))
    return write_report(
        "compare",
        grid,
        config,
        measured,
        found=[(quantity, found[quantity.name], best_sentence(grid, quantity)) for quantity in quantities],
        benchmarks=[*names, *(f"{name}, 1 - NED" for name in names)],
        scores={
            variant: [
                [run[BENCHMARKS][name][score] for run in runs.values()]
                for score in ("accuracy", "similarity")
                for name in names
            ]
            for variant, runs in measured.items()
        },
        bits={
            name: {variant: valid_metric(runs, name).values() for variant, runs in measured.items()}
            for name in next(iter(measured[grid.base].values()))["valid"]
            if name.startswith("bits_per_byte/")
        },
        latency=latency,
        layers=layers,
    )


def mean_layers(grid: Comparison, measured: Measured) -> list[tuple[str, int, dict[str, list[float]]]]:
    """(title, digits, {variant: means over seeds, by layer}) of metrics of collapse; draws them too (layers.png)."""
    from eval.plots import PALETTE, figure

    for variant, runs in measured.items():
        for seed, run in runs.items():
            if COLLAPSE not in run:
                file = f"{grid.output}/{variant}/seed{seed}/cell.json"
                raise GridError(f"{file} was measured without collapse; remove it, and it is measured again")
    drawing = figure(11, 4)
    found = []
    for number, (name, (title, digits)) in enumerate(LAYER_METRICS.items()):
        axis = drawing.add_subplot(1, 2, number + 1)
        means = {}
        for index, (variant, runs) in enumerate(measured.items()):
            by_layer = list(zip(*([row[name] for row in run[COLLAPSE]] for run in runs.values()), strict=True))
            means[variant] = list(map(mean, by_layer))
            error, colour = list(map(deviation, by_layer)), PALETTE[index % len(PALETTE)]
            x = range(len(by_layer))
            axis.errorbar(x, means[variant], yerr=error, color=colour, marker="o", markersize=3, label=variant)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("layer (0: embeddings)")
        axis.grid(alpha=0.25)
        found.append((title, digits, means))
    axis.legend(frameon=False, fontsize=8)
    drawing.savefig(plot_folder(grid) / "layers.png", dpi=120)
    return found


def best_sentence(grid: Comparison, quantity: Quantity) -> str:
    """The variant of the lowest mean; along an axis, whether it lies at an end of it: then there is no optimum.

    What diverged has no mean, and compares as neither lower nor higher than any.
    """
    means = {variant: values.mean() for variant, values in quantity.values.items() if np.isfinite(values).all()}
    if not means:
        return "No variant has finite values alone."
    best = min(means, key=lambda variant: means[variant])
    sentence = f"Lowest mean: `{best}`."
    if grid.axis and grid.axis[best] in (min(grid.axis.values()), max(grid.axis.values())):
        sentence += " It lies at an end of the axis: no optimum inside of it was found."
    return sentence


def _save_plot(grid: Comparison, measured: Measured, quantities: Sequence[Quantity]) -> None:
    """A panel for each quantity: dots for seeds, their means along the axis or side by side."""
    from eval.plots import PALETTE, figure

    drawing = figure(6 * len(quantities), 4.2)
    panels: Any = drawing.subplots(1, len(quantities), squeeze=False)[0]
    names = sorted(measured, key=lambda variant: grid.axis[variant]) if grid.axis else list(measured)
    x = [grid.axis[name] for name in names] if grid.axis else list(range(len(names)))
    for panel, quantity in zip(panels, quantities, strict=True):
        for at, name in zip(x, names, strict=True):
            values = quantity.values[name]
            panel.plot([at] * len(values), values, "o", color=PALETTE[0], alpha=0.4, markersize=4)
        means = [quantity.values[name].mean() for name in names]
        panel.plot(
            x, means, linestyle="-" if grid.axis else "", color=PALETTE[1], marker="s", markersize=5, label="mean"
        )
        panel.axhline(quantity.values[grid.base].mean(), color="grey", linewidth=1, linestyle=":", label=grid.base)
        if grid.axis:
            panel.set_xscale("symlog", linthresh=min([value for value in x if value > 0], default=1.0))
            panel.set_xticks(x, [f"{value:g}" for value in x], fontsize=7, rotation=45)
            panel.set_xlabel(grid.axis_title)
        else:
            panel.set_xticks(x, names, fontsize=7, rotation=30, ha="right")
        panel.set_title(quantity.title, fontsize=10, loc="left")
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8)
    drawing.savefig(plot_folder(grid) / "comparison.png", dpi=120)


def run(options: CompareOptions) -> None:
    """``python -m eval compare`` and, by its older name, ``ablation``."""
    grid = read_options(options, Comparison)
    rounds = grid.latency_rounds if LATENCY in grid.measure and options.stage != "report" else 0
    run_stages(
        grid,
        options.stage,
        lambda cell: measure(cell, grid),
        lambda measured: write_comparison(grid, measured, measure_latency(grid, rounds), options.config),
    )
