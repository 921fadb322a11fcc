"""Parameter-matched depths and widths, each trained on the same tokens (docs/methods/tiny_lm.md: shape sweep).

    budget, vocabulary, depths x widths --> the FFN size that meets the budget --> shapes within the tolerance
    --> a grid of runs (`eval/grid/grid.py`) --> quality against generated tokens/s, Spearman coefficients

The budget is held by the FFN: for a depth and a width there is one FFN size (a multiple of `FFN_MULTIPLE`) that comes
nearest to it, and the shape is kept if its rate (FFN size over width) lies in the wanted range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_config import load_model_config
from eval.commands import ShapesOptions
from eval.grid.grid import Grid, GridError, measure_all, read_grid, results, train_all, training_facts
from eval.grid.statistics import Measured, bits_per_byte, deviation, valid_metric
from eval.studies.compare import measure_latency
from eval.studies.markdown import plot_folder, write_report

FFN_MULTIPLE = 8
SMALLEST_SWEEP = 8
"""Shapes below which a rank correlation says nothing (docs/methods/tiny_lm.md: shape sweep)."""


@dataclass(frozen=True)
class Shape:
    """One parameter-matched shape."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    parameters: int

    @property
    def name(self) -> str:
        """``d192_l11_f512``: width, layers, FFN."""
        return f"d{self.hidden_size}_l{self.num_hidden_layers}_f{self.intermediate_size}"

    @property
    def rate(self) -> float:
        """FFN size over width."""
        return self.intermediate_size / self.hidden_size

    def fields(self) -> dict[str, int]:
        """The model fields that make the shape."""
        return {name: value for name, value in asdict(self).items() if name != "parameters"}


@dataclass(frozen=True, kw_only=True)
class Shapes(Grid):
    """The sweep's YAML; its variants are found and not given."""

    parameters: int
    """Budget: all parameters of the model, vocabulary included."""
    depths: list[int]
    """Layers to try."""
    widths: list[int]
    """Hidden sizes to try, multiples of `head_dim`."""
    model: dict[str, Any]
    """What the shapes share: vocab_size, tie_word_embeddings, series_terms, ... (fields of a model's YAML)."""
    head_dim: int = 64
    """Width of a head; the number of heads follows."""
    heads_per_group: int = 1
    """Query heads that share a key/value head, where that divides their number; otherwise every head has its own."""
    ffn_rates: list[float] = field(default_factory=lambda: [1.0, 4.0])
    """Smallest and largest rate."""
    tolerance: float = 0.03
    """Largest relative distance from the budget."""
    latency_rounds: int = 5
    """Interleaved rounds of the generation speed."""
    slowest: float = 0.5
    """The speed budget: the recommended shape generates at least this share of the fastest one's tokens/s."""

    def __post_init__(self) -> None:
        if self.variants:
            raise ValueError("variants: a shape sweep finds its own; give parameters, depths and widths")
        if wrong := [width for width in self.widths if width % self.head_dim]:
            raise ValueError(f"widths: {wrong[0]} is no multiple of head_dim {self.head_dim}")
        self.all_variants  # noqa: B018  there must be enough of them

    @cached_property
    def all_variants(self) -> dict[str, dict[str, Any]]:
        """The shapes of this budget, by name."""
        found = {shape.name: {"task.model_overrides": {**self.model, **shape.fields()}} for shape in find_shapes(self)}
        if len(found) < SMALLEST_SWEEP:
            raise ValueError(
                f"parameters: only {len(found)} shapes of {self.parameters:,} parameters (± {self.tolerance:.0%}) have "
                f"an FFN rate of {self.ffn_rates[0]:g} to {self.ffn_rates[1]:g}; a sweep needs {SMALLEST_SWEEP}: give "
                "more depths or widths, or a wider range of rates"
            )
        return found


def find_shapes(sweep: Shapes) -> Iterator[Shape]:
    """The shapes of a sweep, by width and depth."""
    for width in sorted(sweep.widths):
        heads = width // sweep.head_dim
        groups = heads // sweep.heads_per_group if heads % sweep.heads_per_group == 0 else heads
        for depth in sorted(sweep.depths):
            shape = {"num_hidden_layers": depth, "hidden_size": width, "head_dim": sweep.head_dim}
            shape |= {"num_attention_heads": heads, "num_key_value_heads": groups}
            fixed = {**sweep.model, **shape}
            one, two = (_parameters(fixed, size) for size in (FFN_MULTIPLE, 2 * FFN_MULTIPLE))
            steps = round((sweep.parameters - one) / (two - one))  # parameters are linear in the FFN size
            size = FFN_MULTIPLE * (1 + max(0, steps))
            total = _parameters(fixed, size)
            near = abs(total / sweep.parameters - 1) <= sweep.tolerance
            if near and sweep.ffn_rates[0] <= size / width <= sweep.ffn_rates[1]:
                yield Shape(depth, width, size, heads, groups, sweep.head_dim, total)


def _parameters(fields: dict[str, Any], intermediate_size: int) -> int:
    return count_parameters(load_model_config({**fields, "intermediate_size": intermediate_size})).total


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
    loss = {name: mean(valid_metric(runs, "loss").values()) for name, runs in measured.items()}
    speed = {name: 1000 / latency[name]["median"] for name in measured if name in latency}
    _save_plot(sweep, measured, speed, shapes)
    rows = [
        {
            "shape": shapes[name],
            "loss": valid_metric(measured[name], "loss").values(),
            "bits": bits_per_byte(measured[name]).values(),
            "generated": speed.get(name),
            "trained": mean(run["tokens_per_second"] for run in measured[name].values()),
        }
        for name in sorted(measured, key=lambda name: loss[name])
    ]
    return write_report(
        "shapes",
        sweep,
        config,
        measured,
        rows=rows,
        tokens=next(iter(next(iter(measured.values())).values()))["tokens"] or 0,
        correlations=correlations(shapes, loss, speed),
        best=recommend(loss, speed, sweep.slowest) if len(speed) == len(loss) else None,
    )


def _save_plot(sweep: Shapes, measured: Measured, speed: Mapping[str, float], shapes: Mapping[str, Shape]) -> None:
    """Loss against generation speed (or against depth, before the speed is measured); a colour for each width."""
    from eval.plots import PALETTE, figure

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
    drawing.savefig(plot_folder(sweep) / "shapes.png", dpi=120)


def run(options: ShapesOptions) -> None:
    """``python -m eval shapes``."""
    sweep = read_grid(Path(options.config), Shapes)
    print(list_shapes(sweep))
    if options.stage == "list":
        return
    if options.stage in ("all", "train"):
        train_all(sweep)
    if options.stage in ("all", "evaluate"):
        measure_all(sweep, training_facts)
    if options.stage != "train":
        latency = measure_latency(sweep, 0 if options.stage == "report" else sweep.latency_rounds)
        print(f"written: {write_shapes_report(sweep, results(sweep), latency, options.config)}")
