"""The ladder: the tiny-model recipe, one trick after another, at one parameter budget (tiny_lm sections 1 and 12.13).

    ladder.yaml --> preparation: commands, each done once (shards, compressed tokenizer, inherited weights)
                --> a grid of runs (`eval/grid/grid.py`): the cumulative rows, and controls of equal tokens
                --> bits per byte, lm-eval, learning curves --> one table and one plot (`eval/studies/ladder_report.py`)

Rows with different tokenizers are compared by bits per byte, never by loss. Everything resumes: finished commands and
cells are not done again, and a cell that was cut off goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.commands import LadderOptions
from eval.grid.grid import Cell, training_facts
from eval.grid.preparation import PreparedGrid, read_options, read_prepared_grid, run_stages


@dataclass(frozen=True)
class Comparison:
    """Variants set beside each other, outside of the ladder."""

    title: str
    """Heading in the report."""
    base: str
    """Variant that the others are compared with."""
    variants: list[str]
    """The others."""
    notes: str = ""
    """Markdown under the heading."""


@dataclass(frozen=True, kw_only=True)
class Ladder(PreparedGrid):
    """The ladder's YAML."""

    rows: list[str]
    """Variants of the ladder, from the baseline up; each is compared with the one before."""
    titles: dict[str, str]
    """What to call each variant in the tables."""
    paper: dict[str, float] = field(default_factory=dict)
    """The gain that the paper reports for a row, in points of its average score."""
    comparisons: list[Comparison] = field(default_factory=list)
    """Controls."""
    tolerance: float = 0.03
    """Largest relative distance of a row's parameters from the first row's."""
    benchmarks: str | None = None
    """Folder of local benchmark files for `tasks`; null takes them from the hub."""
    tasks: list[str] = field(default_factory=list)
    """lm-eval tasks to run on every cell."""
    limit: int | float | None = None
    """Documents per task, or the share of them below 1."""

    def __post_init__(self) -> None:
        for name in (*self.rows, *(n for c in self.comparisons for n in (c.base, *c.variants))):
            if name not in self.variants:
                raise ValueError(f"{name!r} is not among the variants")
        for name in self.variants:
            if name not in self.titles:
                raise ValueError(f"titles: there is none for {name!r}")


def read_ladder(path: Path, given: Mapping[str, str]) -> Ladder:
    """Reads a ladder; `given` are definitions from the command line. Raises `GridError`."""
    return read_prepared_grid(path, given, Ladder)


def measure_cell(cell: Cell, ladder: Ladder) -> dict[str, Any]:
    """A cell's validation, learning curve, size, text seen, and lm-eval scores."""
    import yaml

    from arch.pangu_pi.accounting import count_parameters
    from arch.pangu_pi.load_config import load_model_config
    from common.token_shards import Meta
    from eval.language.lm import evaluate, flatten
    from eval.models import resolve_model
    from eval.report.run_record import read_run

    record = read_run(cell.directory)
    config = load_model_config(resolve_model(str(cell.directory)))
    parameters = count_parameters(config)
    task = yaml.safe_load((cell.directory / "config.yaml").read_text(encoding="utf-8"))["task"]["init_args"]
    shards = [Meta.load(directory) for directory in task["train"]]
    facts = training_facts(cell)
    per_token = sum(meta.bytes for meta in shards) / sum(meta.tokens for meta in shards)
    per_step = facts["tokens"] / record.rows["train"][-1]["step"]
    scores: dict[str, Any] = {}
    if ladder.tasks:
        raw = evaluate(str(cell.directory), ladder.tasks, data=ladder.benchmarks, limit=ladder.limit, bootstrap_iters=0)
        scores = flatten(raw)
    return {
        **facts,
        "parameters": parameters.total,
        "embedding_share": parameters.embedding_and_head_share,
        "vocabulary": config.vocab_size,
        "shape": f"{config.num_hidden_layers} x {config.hidden_size}",
        "bytes": facts["tokens"] * per_token,
        "curve": [
            [row["step"] * per_step, {name: value for name, value in row.items() if name.startswith("bits_per_byte/")}]
            for row in record.rows["valid"]
        ],
        "scores": scores,
    }


def run(options: LadderOptions) -> None:
    """``python -m eval ladder``."""
    from eval.studies.ladder_report import write_ladder_report

    ladder = read_options(options, Ladder)
    run_stages(
        ladder,
        options.stage,
        lambda cell: measure_cell(cell, ladder),
        lambda measured: write_ladder_report(ladder, measured, options),
    )
