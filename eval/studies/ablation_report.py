"""Tables and plots of an ablation grid: means over seeds, paired differences to the base, what is within noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from eval.grid.grid import GridError
from eval.grid.statistics import (
    Measured,
    deviation,
    markdown_table,
    opening,
    paired_difference,
    spread,
    valid_metric,
    verdict,
)
from eval.plots import PALETTE, figure
from eval.studies.ablation import Ablation


def metric_names(measured: Measured) -> list[str]:
    """``loss`` and the bits per byte of every language."""
    first = next(iter(next(iter(measured.values())).values()))
    return ["loss", *(name for name in first["valid"] if name.startswith("bits_per_byte"))]


def comparison_table(grid: Ablation, measured: Measured, latency: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One row per variant."""
    names = metric_names(measured)
    titles = {name: name.replace("bits_per_byte/", "bits/byte ") for name in names}
    columns = ["variant", "parameters", "layers", "seeds", *(titles[n] for n in names)]
    columns += ["Δ loss to base", "standard error", "95 % interval", "d(0.8) last layer", "ms/token"]
    rows = []
    base = valid_metric(measured[grid.base], "loss")
    for variant, by_seed in measured.items():
        first = next(iter(by_seed.values()))
        difference = paired_difference(valid_metric(by_seed, "loss"), base)
        row = [f"`{variant}`", f"{first['parameters']:,}", str(first["layers"]), str(len(by_seed))]
        row += [spread(list(valid_metric(by_seed, name).values())) for name in names]
        if variant == grid.base:
            row += ["", "", ""]
        else:
            low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
            row += [f"{difference.mean:+.4f}", f"{difference.standard_error:.4f}", f"{low:+.4f} to {high:+.4f}"]
        row.append(spread([cell["collapse"][-1]["effective_dimension"] for cell in by_seed.values()], 1))
        figure_ms = latency.get(variant)
        row.append(
            f"{figure_ms['median']:.2f} ({figure_ms['lower']:.2f}-{figure_ms['upper']:.2f})" if figure_ms else ""
        )
        rows.append(row)
    return markdown_table(columns, rows)


def layer_table(measured: Measured, name: str, digits: int) -> list[str]:
    """One row per variant, one column per layer: mean over seeds of a collapse metric."""
    depth = max(len(cell["collapse"]) for by_seed in measured.values() for cell in by_seed.values())
    rows = []
    for variant, by_seed in measured.items():
        layers = zip(*(cell["collapse"] for cell in by_seed.values()), strict=True)
        values = [f"{mean(row[name] for row in seeds):.{digits}f}" for seeds in layers]
        rows.append([f"`{variant}`", *values, *[""] * (depth - len(values))])
    return markdown_table(["variant", *(str(layer) for layer in range(depth))], rows)


def verdicts(grid: Ablation, measured: Measured) -> list[str]:
    """One sentence per variant: better, worse, or within noise."""
    base = valid_metric(measured[grid.base], "loss")
    return [
        f"- `{variant}`: " + verdict(paired_difference(valid_metric(by_seed, "loss"), base), "nats", grid.base)
        for variant, by_seed in measured.items()
        if variant != grid.base
    ]


def save_plots(grid: Ablation, measured: Measured, directory: Path) -> list[Path]:
    """loss.png (paired differences seed by seed) and layers.png (collapse metrics by layer)."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "loss.png", directory / "layers.png"]
    others = [variant for variant in measured if variant != grid.base]
    base = valid_metric(measured[grid.base], "loss")
    drawing = figure(7, 1.2 + 0.4 * len(others))
    axis = drawing.add_subplot()
    for row, variant in enumerate(others):
        losses = valid_metric(measured[variant], "loss")
        difference = paired_difference(losses, base)
        axis.plot(
            [losses[s] - base[s] for s in losses if s in base],
            [row] * difference.seeds,
            "o",
            color=PALETTE[0],
            alpha=0.5,
        )
        width = difference.half_width if math.isfinite(difference.half_width) else 0.0
        axis.errorbar(difference.mean, row, xerr=width, color=PALETTE[1], capsize=4, marker="s")
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(others)), others)
    axis.invert_yaxis()
    axis.set_xlabel(f"validation loss minus {grid.base} (nats per token; dots: seeds, bar: 95 % interval of the mean)")
    drawing.savefig(paths[0], dpi=120)

    drawing = figure(11, 4)
    for number, (name, title) in enumerate(
        (("effective_dimension", "effective dimension d(0.8)"), ("diversity", "d_M(Z)/‖Z‖"))
    ):
        axis = drawing.add_subplot(1, 2, number + 1)
        for index, (variant, by_seed) in enumerate(measured.items()):
            seeds = [[row[name] for row in cell["collapse"]] for cell in by_seed.values()]
            centre = [mean(column) for column in zip(*seeds, strict=True)]
            error = [deviation(column) for column in zip(*seeds, strict=True)]
            colour = PALETTE[index % len(PALETTE)]
            axis.errorbar(range(len(centre)), centre, yerr=error, color=colour, marker="o", markersize=3, label=variant)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("layer (0: embeddings)")
        axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    drawing.savefig(paths[1], dpi=120)
    return paths


def write_ablation_report(
    grid: Ablation, measured: Measured, latency: Mapping[str, Mapping[str, float]], config: str
) -> Path:
    """Writes the Markdown and its plots. Raises `GridError` when the base has no finished cell."""
    if grid.base not in measured:
        raise GridError(f"{grid.output}: no finished cell of the base variant {grid.base!r} yet")
    path = Path(grid.report)
    plots = save_plots(grid, measured, path.with_suffix(""))
    first = next(iter(measured[grid.base].values()))
    lines = [
        *opening(grid, "ablation", config, measured, f", {first['tokens'] or 0:,.0f} training tokens each"),
        "## Validation",
        "",
        "Loss in nats per token; mean ± standard deviation over seeds. Differences are paired: the same seed means the "
        "same data order and the same shared initial weights.",
        "",
        *comparison_table(grid, measured, latency),
        "",
        *verdicts(grid, measured),
        "",
        f"![differences]({plots[0].parent.name}/{plots[0].name})",
        "",
        "## Effective dimension d(0.8) by layer",
        "",
        *layer_table(measured, "effective_dimension", 1),
        "",
        "## Diversity d_M(Z)/‖Z‖ by layer",
        "",
        *layer_table(measured, "diversity", 4),
        "",
        f"![layers]({plots[1].parent.name}/{plots[1].name})",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
