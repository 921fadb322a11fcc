"""Which additions help: variants of a model beside a base, by validation loss, collapse metrics and latency.

The runs are a grid (`eval/grid/grid.py`); `eval/studies/ablation_report.py` writes tables with paired differences, and
plots. Beside the cells lies latency.json: milliseconds per generated token, all variants interleaved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.commands import AblationOptions, CollapseOptions
from eval.grid.grid import Cell, Grid, measure_all, read_grid, results, train_all, trained_cells, training_facts


@dataclass(frozen=True, kw_only=True)
class Ablation(Grid):
    """The ablation's YAML."""

    base: str
    """Variant that the others are compared with."""
    text: list[str]
    """Held-out .jsonl(.gz) or .txt(.gz) files for the collapse metrics."""
    tokens: int = 20_000
    """Held-out tokens for the collapse metrics."""
    latency_rounds: int = 9
    """Interleaved rounds of the latency measurement; 0 leaves it out."""

    def __post_init__(self) -> None:
        if self.base not in self.variants:
            raise ValueError(f"base is {self.base!r}, which is not among the variants")


def measure_cell(cell: Cell, grid: Ablation) -> dict[str, Any]:
    """Validation numbers from the run's log and collapse metrics from its last checkpoint."""
    from eval.models import load_model
    from eval.probes.collapse import measure

    loaded = load_model(str(cell.directory))
    options = CollapseOptions(model=[], text=grid.text, output="", tokens=grid.tokens)
    return {
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "layers": loaded.model.config.num_hidden_layers,
        **training_facts(cell),
        "collapse": measure(loaded, [Path(path) for path in grid.text], options)["layers"],
    }


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


def run(options: AblationOptions) -> None:
    """``python -m eval ablation``."""
    from eval.studies.ablation_report import write_ablation_report

    grid = read_grid(Path(options.config), Ablation)
    if options.stage in ("all", "train"):
        train_all(grid)
    if options.stage in ("all", "evaluate"):
        measure_all(grid, lambda cell: measure_cell(cell, grid))
    if options.stage != "train":
        rounds = 0 if options.stage == "report" else grid.latency_rounds
        latency = measure_latency(grid, rounds)
        print(f"written: {write_ablation_report(grid, results(grid), latency, options.config)}")
