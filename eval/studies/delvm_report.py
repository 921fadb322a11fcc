"""The report of `eval delvm`: every claim with its paired differences over seeds, and the null results in plain words.

The rule (docs/methods/delvm.md: null results): a mean paired difference below two standard errors is no effect here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from eval.commands import DelvmOptions
from eval.grid.grid import GridError
from eval.grid.statistics import Measured, PairedDifference, paired_difference
from eval.studies.delvm import Delvm
from eval.studies.delvm_plots import save_balance_plot, save_curves_plot, save_dose_plot
from eval.studies.delvm_prompting import prompting
from eval.studies.markdown import plot_folder, write_report

LARGE_GAP = 0.3
"""Nats between training and validation that show over-fitting of a scarce set; below it the comparison says little."""
Values = Mapping[int, float]
"""{seed: value}."""


def write_delvm_report(
    grid: Delvm,
    measured: Measured,
    runs: Mapping[str, Mapping[str, Any]],
    vision: Mapping[str, Any] | None,
    options: DelvmOptions,
) -> Path:
    """Writes the Markdown and its plots from what has been measured so far.

    Args:
        grid: the experiment.
        measured: the cells.
        runs: measurements of the runs that the preparation made, by title.
        vision: content of vision.json.
        options: the command line.

    Raises:
        GridError: the 2 x 2 has no finished cell yet.
    """
    if not any(arm in measured for arm in grid.balance.arms()):
        raise GridError(f"{grid.output}: no finished cell of the 2 x 2 yet")
    folder = plot_folder(grid)
    arms = [arm for arm in grid.balance.arms() if arm in measured]
    tasks = list(next(iter(measured[arms[0]].values()))["tasks"])
    shown_arms = {grid.titles[arm]: measured[arm] for arm in arms}
    save_balance_plot(shown_arms, tasks, folder / "balance.png")
    save_curves_plot(shown_arms, tasks, folder / "curves.png")
    balance = grid.balance
    pairs = [(balance.augment, base) for base in (balance.resampling, balance.mixture, balance.aug_natural)]
    pairs += [(balance.resampling, balance.mixture), (balance.aug_natural, balance.mixture)]
    prompted = None if vision is None else prompting(grid, vision, Path(grid.output) / "vision", folder)
    return write_report(
        "delvm",
        grid,
        options.config,
        measured,
        tasks=tasks,
        arms=arms,
        compared=compare_losses(measured, pairs, tasks),
        verdicts=balance_verdicts(grid, measured, tasks),
        distilled=distillation(grid, measured, runs, folder),
        dose=dose_curve(grid, measured, folder),
        runs=runs,
        prompted=prompted,
        best=best,
        gap=gap,
        judged=judged,
        losses=values,
        shown=shown,
    )


def values(cells: Mapping[int, Mapping[str, Any]], task: str, name: str = "loss", side: str = "tasks") -> Values:
    """{seed: number} of one task; `side` is ``tasks`` (held-out) or ``train``."""
    return {seed: cell[side][task][name] for seed, cell in cells.items() if task in cell[side]}


def gap(cells: Mapping[int, Mapping[str, Any]], task: str) -> Values:
    """{seed: validation loss minus training loss}."""
    train = values(cells, task, side="train")
    return {seed: value - train[seed] for seed, value in values(cells, task).items() if seed in train}


def best(cells: Mapping[int, Mapping[str, Any]], task: str) -> Values:
    """{seed: lowest validation loss of the curve}."""
    return {seed: min(losses[task] for _, losses in cell["curve"]) for seed, cell in cells.items()}


def has_effect(difference: PairedDifference) -> bool:
    """Whether the mean is at least two standard errors from zero."""
    return difference.seeds > 1 and abs(difference.mean) >= 2 * difference.standard_error


def shown(difference: PairedDifference) -> str:
    """``-0.1234 ± 0.0100``, in bold where there is an effect."""
    if difference.seeds == 0:
        return ""
    text = f"{difference.mean:+.4f}"
    if not math.isfinite(difference.standard_error):
        return text
    text += f" ± {difference.standard_error:.4f}"
    return f"**{text}**" if has_effect(difference) else text


def judged(difference: PairedDifference, of: str, base: str) -> str:
    """The verdict on a paired difference of losses in one sentence."""
    if difference.seeds < 2:
        return f"{of} against {base}: {difference.mean:+.4f}, one common seed: no statement about noise."
    if not has_effect(difference):
        return f"{of} against {base}: no effect at this scale ({shown(difference)}, {difference.seeds} seeds)."
    direction = "lower" if difference.mean < 0 else "higher"
    return f"{of}: {direction} than {base} ({shown(difference)}, {difference.seeds} seeds)."


def in_seeds(holds: Sequence[bool]) -> str:
    """``3 of 3 seeds``."""
    return f"{sum(holds)} of {len(holds)} seeds"


def compare_losses(
    measured: Measured, pairs: Sequence[tuple[str, str]], tasks: Sequence[str]
) -> list[tuple[str, str, dict[str, PairedDifference]]]:
    """(variant, base, {task: paired difference of the loss}) of those pairs that have been measured."""
    return [
        (variant, base, {task: _difference(measured, variant, base, task) for task in tasks})
        for variant, base in pairs
        if variant in measured and base in measured
    ]


def _difference(measured: Measured, variant: str, base: str, task: str, name: str = "loss") -> PairedDifference:
    return paired_difference(values(measured[variant], task, name), values(measured[base], task, name))


def balance_verdicts(grid: Delvm, measured: Measured, tasks: Sequence[str]) -> list[str]:
    """What the paper claims of the arms, and whether it was found."""
    arms = grid.balance
    if not all(arm in measured for arm in arms.arms()):
        return ["the 2 x 2 is not complete"]
    seeds = [seed for seed in grid.seeds if all(seed in measured[arm] for arm in arms.arms())]
    lines = []
    for task in grid.scarce:
        lines.append(
            f"{task}, " + judged(_difference(measured, arms.augment, arms.resampling, task), "augment", "re-sampling")
        )
        lowest = [min(arms.arms(), key=lambda arm: measured[arm][seed]["tasks"][task]["loss"]) for seed in seeds]
        lines.append(
            f"{task}: augment has the lowest validation loss in {in_seeds([arm == arms.augment for arm in lowest])}."
        )
        gaps = {arm: gap(measured[arm], task) for arm in arms.arms()}
        widest = [max(gaps, key=lambda arm: gaps[arm].get(seed, -math.inf)) for seed in seeds]
        found = mean(gaps[arms.resampling].values())
        lines.append(
            f"{task}: re-sampling has the largest gap between training and validation in "
            f"{in_seeds([arm == arms.resampling for arm in widest])}; it is {found:.3f} nats"
            + (
                "."
                if found > LARGE_GAP
                else f", below {LARGE_GAP}: the scarce set was hardly over-fitted in this time."
            )
        )
        rises = [
            values(measured[arms.resampling], task)[seed] - best(measured[arms.resampling], task)[seed]
            for seed in seeds
        ]
        lines.append(f"{task}: re-sampling ends {mean(rises):.3f} nats above its lowest validation loss.")
    for task in (task for task in tasks if task not in grid.scarce):
        lines.append(
            f"{task}, the price: "
            + judged(_difference(measured, arms.augment, arms.mixture, task), "augment", "the mixture")
        )
    return lines


def distillation(
    grid: Delvm, measured: Measured, runs: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, Any] | None:
    """Students with a teacher against labels only, at equal steps and at equal compute; draws distillation.png."""
    found = grid.distilled
    if found is None or found.plain not in measured:
        return None
    teacher = next((run for title, run in runs.items() if grid.runs[title] == found.teacher), None)
    arms = [arm for arm in (found.plain, *found.students, found.longer) if arm in measured]
    tasks = list(next(iter(measured[found.plain].values()))["tasks"])
    save_curves_plot({grid.titles[arm]: measured[arm] for arm in arms}, tasks, folder / "distillation.png")
    students = []
    for arm in (arm for arm in found.students if arm in measured):
        compared = compare_losses(measured, [(arm, found.plain), (arm, found.longer)], tasks)
        shares = [_share_of_gap(measured, arm, found.plain, teacher, task) for task in tasks] if teacher else []
        students.append((arm, compared, shares))
    seconds = {arm: mean(cell["seconds"] for cell in measured[arm].values()) for arm in arms}
    return {"teacher": teacher, "arms": arms, "seconds": seconds, "students": students}


def _share_of_gap(measured: Measured, arm: str, plain: str, teacher: Mapping[str, Any], task: str) -> str:
    """Of plain minus teacher, how much the student gains; nothing where the teacher is not better."""
    base = mean(values(measured[plain], task).values())
    distance = base - teacher["tasks"][task]["loss"]
    return f"{(base - mean(values(measured[arm], task).values())) / distance:.0%}" if distance > 0 else "no gap"


def dose_curve(grid: Delvm, measured: Measured, folder: Path) -> list[tuple[str, Values, PairedDifference | None]]:
    """(variant, loss by seed, minus the fewest pairs) of claim 1: augmented copies, new images; draws dose.png."""
    dose = grid.dose
    if dose is None or dose.base not in measured:
        return []
    base = values(measured[dose.base], dose.task)
    rows: list[tuple[str, Values, PairedDifference | None]] = [(dose.base, base, None)]
    for arm in (*dose.copies, *dose.images):
        if arm in measured:
            found = values(measured[arm], dose.task)
            rows.append((arm, found, paired_difference(found, base)))
    points = {
        "copies": {factor: measured[arm] for arm, factor in dose.copies.items() if arm in measured},
        "images": {count: measured[arm] for arm, count in dose.images.items() if arm in measured},
    }
    save_dose_plot(points, measured[dose.base], dose.task, folder / "dose.png")
    return rows
