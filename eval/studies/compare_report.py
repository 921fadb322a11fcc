"""The report of a comparison: one row per variant, differences to the base with intervals, a plot along the axis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.grid.grid import GridError
from eval.grid.measures import BENCHMARKS, Quantity, quantities_of
from eval.grid.power_law import Estimate, interval
from eval.grid.resampling import resample
from eval.grid.statistics import Measured, markdown_table, opening, paired_difference, spread
from eval.plots import PALETTE, figure
from eval.studies.compare import Comparison

RESAMPLING_SEED = 0


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


def write_comparison(grid: Comparison, measured: Measured, config: str) -> Path:
    """Writes the Markdown, a JSON file beside it, and comparison.png.

    Raises:
        GridError: no cell of the base has been measured yet.
    """
    if grid.base not in measured:
        raise GridError(f"{grid.output}: no measured cell of the base variant {grid.base!r} yet")
    quantities = quantities_of(grid, measured)
    found = {quantity.name: differences(grid, measured, quantity) for quantity in quantities}
    path = Path(grid.report)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    plot = _save_plot(grid, measured, quantities, folder)
    lines = [
        *opening(grid, "compare", config, measured),
    ]
    for quantity in quantities:
        source = "resampled test images, the same for both variants, and seeds" if quantity.wrong else "seeds"
        title = quantity.title[:1].upper() + quantity.title[1:]
        lines += [
            f"## {title}",
            "",
            f"Mean ± standard deviation over seeds; 95 % intervals of differences: {source}.",
            "",
        ]
        lines += [
            *quantity_table(grid, measured, quantity, found[quantity.name]),
            "",
            best_sentence(grid, quantity),
            "",
        ]
    if benchmark_names(measured):
        lines += ["## Word accuracy by benchmark (%)", "", *benchmark_table(measured), ""]
    lines += [f"![comparison]({folder.name}/{plot.name})", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
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
    path.with_suffix(".json").write_text(json.dumps({"base": grid.base, **content}, indent=1), encoding="utf-8")
    return path


def quantity_table(grid: Comparison, measured: Measured, quantity: Quantity, found: dict[str, Difference]) -> list[str]:
    """One row per variant."""
    rows = []
    for variant, runs in measured.items():
        row = [f"`{variant}`", *([f"{grid.axis[variant]:g}"] if grid.axis else []), str(len(runs))]
        row.append(spread(list(quantity.values[variant])))
        if variant == grid.base:
            row += ["", "", ""]
        else:
            estimate = found[variant].estimate
            interval = f"{estimate.low:+.4f} to {estimate.high:+.4f}" if np.isfinite(estimate.low) else ""
            row += [f"{estimate.value:+.4f}", interval, found[variant].judgement]
        rows.append(row)
    columns = ["variant", *([grid.axis_title or "axis"] if grid.axis else []), "seeds", quantity.title]
    return markdown_table([*columns, f"minus `{grid.base}`", "95 % interval", "so"], rows)


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


def benchmark_names(measured: Measured) -> list[str]:
    """Benchmarks that the runs were measured on."""
    return list(next(iter(next(iter(measured.values())).values())).get(BENCHMARKS, {}))


def benchmark_table(measured: Measured) -> list[str]:
    """Accuracy by variant and benchmark, and normalised edit similarity, means over seeds."""
    names = benchmark_names(measured)
    rows = []
    for variant, runs in measured.items():
        scores = [[run[BENCHMARKS][name] for run in runs.values()] for name in names]
        row = [spread([100 * score["accuracy"] for score in by_seed], 2) for by_seed in scores]
        row += [spread([100 * score["similarity"] for score in by_seed], 2) for by_seed in scores]
        rows.append([f"`{variant}`", *row])
    return markdown_table(["variant", *names, *(f"{name}, 1 - NED" for name in names)], rows)


def _save_plot(grid: Comparison, measured: Measured, quantities: Sequence[Quantity], folder: Path) -> Path:
    """A panel for each quantity: dots for seeds, their means along the axis or side by side."""
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
    path = folder / "comparison.png"
    drawing.savefig(path, dpi=120)
    return path
