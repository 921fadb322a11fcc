"""The report of a shape sweep: a table, quality against speed, and what correlates with quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from eval.grid.grid import GridError
from eval.grid.statistics import Measured, bits_per_byte, deviation, markdown_table, opening, spread, valid_metric
from eval.plots import PALETTE, figure
from eval.studies.shapes import Shape, Shapes, find_shapes


def list_shapes(sweep: Shapes) -> str:
    """The sweep's shapes as text, before anything is trained."""
    lines = [
        f"{shape.name:<20} {shape.num_hidden_layers:>3} layers, width {shape.hidden_size:>4}, "
        f"FFN {shape.intermediate_size:>5} ({shape.rate:.2f}), {shape.num_attention_heads} heads: "
        f"{shape.parameters:,} parameters"
        for shape in find_shapes(sweep)
    ]
    return "\n".join([*lines, f"{len(lines)} shapes, {len(sweep.seeds)} seeds"])


def correlations(
    shapes: Mapping[str, Shape], loss: Mapping[str, float], speed: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """{property: (Spearman's rho with quality, p-value)}; quality is minus the mean loss."""
    from scipy.stats import spearmanr

    names = list(loss)
    quality = [-loss[name] for name in names]
    properties: dict[str, list[float]] = {
        "depth": [shapes[name].num_hidden_layers for name in names],
        "width": [shapes[name].hidden_size for name in names],
        "FFN rate": [shapes[name].rate for name in names],
        "tokens/s": [speed[name] for name in names if name in speed],
    }
    found = {}
    for label, values in properties.items():
        if len(values) == len(quality) > 2:
            result = spearmanr(values, quality)
            found[label] = (float(result.statistic), float(result.pvalue))
    return found


def recommend(loss: Mapping[str, float], speed: Mapping[str, float], slowest: float) -> str:
    """The shape of the best mean loss among those that generate at least `slowest` of the fastest one's tokens/s."""
    fastest = max(speed.values())
    return min((name for name in loss if speed[name] >= slowest * fastest), key=lambda name: loss[name])


def write_shapes_report(
    sweep: Shapes, measured: Measured, latency: Mapping[str, Mapping[str, float]], config: str
) -> Path:
    """Writes the Markdown and shapes.png.

    Raises:
        GridError: no shape has been measured yet.
    """
    if not measured:
        raise GridError(f"{sweep.output}: no finished run yet")
    shapes = {shape.name: shape for shape in find_shapes(sweep)}
    loss = {name: mean(valid_metric(cells, "loss").values()) for name, cells in measured.items()}
    speed = {name: 1000 / latency[name]["median"] for name in measured if name in latency}
    path = Path(sweep.report)
    plot = _save_plot(sweep, measured, speed, shapes, path.with_suffix(""))
    rows = [
        [
            f"`{name}`",
            str(shapes[name].num_hidden_layers),
            str(shapes[name].hidden_size),
            f"{shapes[name].intermediate_size} ({shapes[name].rate:.2f})",
            f"{shapes[name].parameters:,}",
            spread(list(valid_metric(cells, "loss").values())),
            spread(list(bits_per_byte(cells).values())),
            f"{speed[name]:.0f}" if name in speed else "",
            f"{mean(cell['tokens_per_second'] for cell in cells.values()):,.0f}",
        ]
        for name, cells in sorted(measured.items(), key=lambda entry: loss[entry[0]])
    ]
    columns = ["shape", "layers", "width", "FFN (rate)", "parameters", "loss", "bits/byte"]
    columns += ["generated tokens/s", "trained tokens/s"]
    rho = correlations(shapes, loss, speed)
    first = next(iter(next(iter(measured.values())).values()))
    lines = [
        *opening(sweep, "shapes", config, measured, f", {first['tokens'] or 0:,.0f} training tokens each"),
        *markdown_table(columns, rows),
        "",
        "Spearman's rank correlation with quality (minus the mean validation loss) over "
        f"{len(loss)} shapes; the paper reports +0.528 for depth and -0.528 for width at 1B parameters:",
        "",
        *markdown_table(["property", "rho", "p"], [[k, f"{r:+.3f}", f"{p:.3f}"] for k, (r, p) in rho.items()]),
        "",
    ]
    if len(speed) == len(loss):
        lines += [
            f"Best loss among the shapes that generate at least {sweep.slowest:.0%} of the fastest one's tokens/s: "
            f"`{recommend(loss, speed, sweep.slowest)}`.",
            "",
        ]
    lines += [f"![quality against speed]({plot.parent.name}/{plot.name})", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _save_plot(
    sweep: Shapes, measured: Measured, speed: Mapping[str, float], shapes: Mapping[str, Shape], directory: Path
) -> Path:
    """Loss against generation speed (or against depth, before the speed is measured); a colour for each width."""
    directory.mkdir(parents=True, exist_ok=True)
    drawing = figure(7, 4.4)
    axis = drawing.add_subplot()
    widths = sorted({shape.hidden_size for shape in shapes.values()})
    for number, width in enumerate(widths):
        names = [name for name in measured if shapes[name].hidden_size == width]
        losses = [list(valid_metric(measured[name], "loss").values()) for name in names]
        x = [speed.get(name, shapes[name].num_hidden_layers) for name in names]
        error = [deviation(values) for values in losses]
        colour = PALETTE[number % len(PALETTE)]
        axis.errorbar(x, list(map(mean, losses)), yerr=error, fmt="o", color=colour, label=f"width {width}")
        for name, at, values in zip(names, x, losses, strict=True):
            axis.annotate(f"{shapes[name].num_hidden_layers} layers", (at, mean(values)), fontsize=7, xytext=(4, 4),
                          textcoords="offset points")  # fmt: skip
    axis.set_xlabel("generated tokens/s" if speed else "layers")
    axis.set_ylabel("validation loss (nats per token)")
    axis.set_title(f"Shapes of {sweep.parameters / 1e6:.3g} M parameters", fontsize=10, loc="left")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    path = directory / "shapes.png"
    drawing.savefig(path, dpi=120)
    return path
