"""The tiny-model recipe, one trick after another, at one parameter budget (docs/methods/tiny_lm.md: the ladder).

    ladder.yaml --> preparation: commands, each done once (shards, compressed tokenizer, inherited weights)
                --> a grid of runs (`eval/grid/grid.py`): the cumulative rows, and controls of equal tokens
                --> bits per byte, lm-eval, learning curves --> one table and one plot (`templates/ladder.md.j2`)

Rows with different tokenizers are compared by bits per byte, never by loss. Everything resumes: finished commands and
cells are not done again, and a cell that was cut off goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from eval.commands import LadderOptions
from eval.grid.grid import Cell, GridError, training_facts
from eval.grid.preparation import PreparedGrid, read_options, read_prepared_grid, run_stages
from eval.grid.statistics import Measured, bits_per_byte, deviation, paired_difference
from eval.studies.markdown import plot_folder, write_report

SCORE = ("acc_norm", "acc", "exact_match")
"""The metric shown for a task: the first of these that it has."""


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


def write_ladder_report(ladder: Ladder, measured: Measured, config: str) -> Path:
    """Writes the Markdown and ladder.png from the cells measured so far.

    Raises:
        GridError: nothing has been measured yet, or the rows have different sizes.
    """
    names = [name for name in ladder.rows if name in measured]
    if not names:
        raise GridError(f"{ladder.output}: no finished cell of the ladder yet")
    check_budget(ladder, measured)
    _save_plot(ladder, measured)
    rows = [_compared(measured, name, before) for name, before in zip(names, [None, *names], strict=False)]
    controls = []
    for control in ladder.comparisons:
        if control.base in measured:
            level = mean(bits_per_byte(measured[control.base]).values())
            variants = [name for name in control.variants if name in measured]
            lines = [_compared(measured, name, control.base) for name in variants]
            lines.insert(0, _compared(measured, control.base, None))
            for line in lines:
                line["begins"], line["reached"] = line["curve"][0][1], tokens_to_reach(line["curve"], level)
            controls.append((control, lines))
    scores = {
        name: {task: [_score(cell["scores"][task]) for cell in runs.values()] for task in _first(runs)["scores"]}
        for name, runs in measured.items()
        if ladder.tasks
    }
    return write_report("ladder", ladder, config, measured, rows=rows, controls=controls, scores=scores)


def _compared(measured: Measured, name: str, base: str | None) -> dict[str, Any]:
    """A variant's size, bits per byte by seed and learning curve, and the paired difference to another one."""
    values = bits_per_byte(measured[name])
    difference = None if base is None else paired_difference(values, bits_per_byte(measured[base]))
    curve = _curve(measured[name])
    return {"name": name, "base": base, "run": _first(measured[name]), "values": values.values(), "curve": curve,
            "difference": difference}  # fmt: skip


def check_budget(ladder: Ladder, measured: Measured) -> None:
    """Raises `GridError` for a row whose parameters are further than the tolerance from the first row's."""
    sizes = {name: _first(measured[name])["parameters"] for name in ladder.rows if name in measured}
    base, target = next(iter(sizes.items()))
    for name, size in sizes.items():
        if abs(size / target - 1) > ladder.tolerance:
            raise GridError(
                f"{name} has {size:,} parameters and {base} has {target:,}: more than {ladder.tolerance:.0%} apart; "
                "change the shape of one of them"
            )


def tokens_to_reach(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Tokens at which a falling curve first meets `target`, between the measured points linearly; None if never."""
    for (tokens, value), (next_tokens, next_value) in pairwise(curve):
        if value <= target:
            return tokens
        if next_value <= target:
            return tokens + (next_tokens - tokens) * (value - target) / (value - next_value)
    return curve[-1][0] if curve and curve[-1][1] <= target else None


def _curve(cells: Mapping[int, Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(tokens, bits per byte), mean over seeds and languages, at the validations that all seeds have."""
    points = zip(*(cell["curve"] for cell in cells.values()), strict=False)
    return [(seeds[0][0], mean(mean(values.values()) for _, values in seeds)) for seeds in points]


def _save_plot(ladder: Ladder, measured: Measured) -> None:
    """Left: the rows. Right: bits per byte over tokens, for every variant."""
    from eval.plots import PALETTE, figure

    drawing = figure(12, 4.6)
    bars, curves = drawing.subplots(1, 2)
    rows = [name for name in ladder.rows if name in measured]
    values = [list(bits_per_byte(measured[name]).values()) for name in rows]
    error = [deviation(seeds) for seeds in values]
    bars.barh(range(len(rows)), list(map(mean, values)), xerr=error, color=PALETTE[0], height=0.6)
    bars.set_yticks(range(len(rows)), [ladder.titles[name] for name in rows], fontsize=8)
    bars.invert_yaxis()
    bars.set_xlim(left=0.9 * min(map(min, values)))
    bars.set_xlabel("bits per byte of held-out text (the axis does not begin at 0)")
    for number, (name, cells) in enumerate(measured.items()):
        x, y = zip(*_curve(cells), strict=True)
        style = "-" if name in ladder.rows else "--"
        colour = PALETTE[number % len(PALETTE)]
        curves.plot(x, y, style, color=colour, marker="o", markersize=2.5, linewidth=1.2, label=ladder.titles[name])
    curves.set_xlabel("training tokens")
    curves.set_ylabel("bits per byte")
    curves.grid(alpha=0.25)
    curves.legend(frameon=False, fontsize=7)
    drawing.savefig(plot_folder(ladder) / "ladder.png", dpi=120)


def _first(cells: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(iter(cells.values()))


def _score(metrics: Mapping[str, float]) -> float:
    return next((metrics[name] for name in SCORE if name in metrics), next(iter(metrics.values())))


def run(options: LadderOptions) -> None:
    """``python -m eval ladder``."""
    ladder = read_options(options, Ladder)
    run_stages(
        ladder,
        options.stage,
        lambda cell: measure_cell(cell, ladder),
        lambda measured: write_ladder_report(ladder, measured, options.config),
    )
