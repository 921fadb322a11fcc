"""The shape sweep (tiny_lm section 5): parameter-matched depths and widths, each trained on the same tokens.

    budget, vocabulary, depths x widths --> the FFN size that meets the budget --> shapes within the tolerance
    --> a grid of runs (`eval/grid/grid.py`) --> quality against generated tokens/s, Spearman coefficients

The budget is held by the FFN: for a depth and a width there is one FFN size (a multiple of `FFN_MULTIPLE`) that comes
nearest to it, and the shape is kept if its rate (FFN size over width) lies in the wanted range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_config import load_model_config
from eval.commands import ShapesOptions
from eval.grid.grid import Grid, measure_all, read_grid, results, train_all, training_facts
from eval.studies.ablation import measure_latency

FFN_MULTIPLE = 8
SMALLEST_SWEEP = 8
"""Shapes below which a rank correlation says nothing (tiny_lm section 12, property 4)."""


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


def run(options: ShapesOptions) -> None:
    """``python -m eval shapes``."""
    from eval.studies.shapes_report import list_shapes, write_shapes_report

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
