"""The report of a ladder: the cumulative rows beside the paper's gains, the controls, the learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from eval.commands import LadderOptions
from eval.grid.grid import GridError
from eval.grid.statistics import (
    Measured,
    PairedDifference,
    bits_per_byte,
    deviation,
    markdown_table,
    opening,
    paired_difference,
    spread,
    verdict,
)
from eval.plots import PALETTE, figure
from eval.studies.ladder import Comparison, Ladder

SCORE = ("acc_norm", "acc", "exact_match")
"""The metric shown for a task: the first of these that it has."""


def write_ladder_report(ladder: Ladder, measured: Measured, options: LadderOptions) -> Path:
    """Writes the Markdown and ladder.png from the cells measured so far.

    Raises:
        GridError: nothing has been measured yet, or the rows have different sizes.
    """
    rows = [name for name in ladder.rows if name in measured]
    if not rows:
        raise GridError(f"{ladder.output}: no finished cell of the ladder yet")
    check_budget(ladder, measured)
    path = Path(ladder.report)
    plot = _save_plot(ladder, measured, path.with_suffix(""))
    lines = [
        *opening(ladder, "ladder", options.config, measured),
        "## The ladder",
        "",
        "Bits per byte of held-out text, mean ± standard deviation over seeds; a negative step is a gain. Steps are "
        "paired differences over seeds, with their 95 % interval. The paper's figures are points of a ten-benchmark "
        "average at 1B parameters: another scale and unit, only the order can be compared.",
        "",
        *ladder_table(ladder, measured),
        "",
        *_verdicts(ladder, measured),
        "",
        f"![the ladder]({plot.parent.name}/{plot.name})",
        "",
    ]
    for comparison in ladder.comparisons:
        if comparison.base in measured:
            lines += comparison_section(ladder, comparison, measured)
    if ladder.tasks:
        lines += ["## lm-eval", "", *score_table(ladder, measured), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


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


def ladder_table(ladder: Ladder, measured: Measured) -> list[str]:
    """One line per row of the ladder."""
    columns = ["row", "shape", "vocabulary", "parameters", "embedding share", "tokens", "text", "seeds", "bits/byte"]
    columns += ["step", "95 % interval", "paper: points"]
    lines = []
    previous: str | None = None
    for name in (row for row in ladder.rows if row in measured):
        first, values = _first(measured[name]), bits_per_byte(measured[name])
        line = [
            ladder.titles[name],
            first["shape"],
            f"{first['vocabulary']:,}",
            f"{first['parameters']:,}",
            f"{first['embedding_share']:.1%}",
            f"{first['tokens']:,.0f}",
            f"{first['bytes'] / 1e6:.2f} MB",
            str(len(values)),
            spread(list(values.values())),
        ]
        if previous is None:
            line += ["", ""]
        else:
            difference = paired_difference(values, bits_per_byte(measured[previous]))
            line += [f"{difference.mean:+.4f}", _interval(difference)]
        line.append(f"{ladder.paper[name]:+.2f}" if name in ladder.paper else "")
        lines.append(line)
        previous = name
    return markdown_table(columns, lines)


def comparison_section(ladder: Ladder, comparison: Comparison, measured: Measured) -> list[str]:
    """A heading, a table and a sentence per variant."""
    base = bits_per_byte(measured[comparison.base])
    names = [name for name in (comparison.base, *comparison.variants) if name in measured]
    rows, sentences = [], []
    for name in names:
        cells = measured[name]
        values = bits_per_byte(cells)
        row = [ladder.titles[name], f"{_first(cells)['tokens']:,.0f}", str(len(values))]
        row += [f"{_curve(cells)[0][1]:.4f}", spread(list(values.values()))]
        reached = tokens_to_reach(_curve(cells), mean(base.values()))
        row.append(f"{reached:,.0f}" if reached is not None else "not reached")
        if name == comparison.base:
            row += ["", ""]
        else:
            difference = paired_difference(values, base)
            row += [f"{difference.mean:+.4f}", _interval(difference)]
            sentences.append(f"- {ladder.titles[name]}: " + verdict(difference, "bits/byte", comparison.base))
        rows.append(row)
    title = ladder.titles[comparison.base]
    columns = ["variant", "tokens", "seeds", "first measured", "last", f"tokens to reach {title}'s last"]
    columns += [f"last, minus {title}", "95 % interval"]
    notes = [comparison.notes.strip(), ""] if comparison.notes else []
    return [f"## {comparison.title}", "", *notes, *markdown_table(columns, rows), "", *sentences, ""]


def score_table(ladder: Ladder, measured: Measured) -> list[str]:
    """One line per variant: mean and spread over seeds of every task's score."""
    tasks = list(_first(next(iter(measured.values())))["scores"])
    rows = []
    for name, cells in measured.items():
        values = [[_score(cell["scores"][task]) for cell in cells.values()] for task in tasks]
        rows.append([ladder.titles[name], *(spread(row, 3) for row in values)])
    return markdown_table(["variant", *tasks], rows)


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


def _verdicts(ladder: Ladder, measured: Measured) -> list[str]:
    rows = [row for row in ladder.rows if row in measured]
    return [
        f"- {ladder.titles[row]}: "
        + verdict(paired_difference(bits_per_byte(measured[row]), bits_per_byte(measured[before])), "bits/byte", before)
        for before, row in pairwise(rows)
    ]


def _save_plot(ladder: Ladder, measured: Measured, directory: Path) -> Path:
    """Left: the rows. Right: bits per byte over tokens, for every variant."""
    directory.mkdir(parents=True, exist_ok=True)
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
    path = directory / "ladder.png"
    drawing.savefig(path, dpi=120)
    return path


def _first(cells: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(iter(cells.values()))


def _interval(difference: PairedDifference) -> str:
    if not math.isfinite(difference.half_width):
        return ""
    return f"{difference.mean - difference.half_width:+.4f} to {difference.mean + difference.half_width:+.4f}"


def _score(metrics: Mapping[str, float]) -> float:
    return next((metrics[name] for name in SCORE if name in metrics), next(iter(metrics.values())))
