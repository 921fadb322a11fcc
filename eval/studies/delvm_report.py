"""The report of `eval delvm`: every claim with its paired differences over seeds, and the null results in plain words.

The rule is that of spec delvm.md, 9.7: a mean paired difference below two standard errors is no effect at this scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from eval.commands import DelvmOptions
from eval.grid.grid import GridError
from eval.grid.statistics import Measured, PairedDifference, markdown_table, paired_difference, spread
from eval.studies.delvm import Delvm
from eval.studies.delvm_plots import save_balance_plot, save_curves_plot, save_dose_plot
from eval.studies.delvm_prompting import prompting_section
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
    if not any(arm in measured for arm in grid.balanced.arms()):
        raise GridError(f"{grid.output}: no finished cell of the 2 x 2 yet")
    folder = plot_folder(grid)
    sections = [
        *balance_section(grid, measured, folder),
        *distillation_section(grid, measured, runs),
        *dose_section(grid, measured, folder),
        *runs_section(runs),
        *(prompting_section(grid, vision, Path(grid.output) / "vision", folder) if vision is not None else []),
    ]
    return write_report("delvm", grid, options.config, measured, sections=sections)


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


def balance_section(grid: Delvm, measured: Measured, folder: Path) -> list[str]:
    """The 2 x 2: losses, gaps, differences from both baselines, what the claims say and what was found."""
    arms = [arm for arm in grid.balanced.arms() if arm in measured]
    tasks = list(next(iter(measured[arms[0]].values()))["tasks"])
    rows = []
    for task in tasks:
        for arm in arms:
            cells = measured[arm]
            gaps = list(gap(cells, task).values())
            rows.append(
                [
                    task,
                    grid.titles[arm],
                    spread(list(values(cells, task).values()), 3),
                    spread(list(best(cells, task).values()), 3),
                    spread([100 * value for value in values(cells, task, "accuracy").values()], 1),
                    spread(list(values(cells, task, "target_loss").values()), 3),
                    spread(list(values(cells, task, "last_target_loss").values()), 3),
                    spread(gaps, 3) if gaps else "",
                ]
            )
    save_balance_plot({grid.titles[arm]: measured[arm] for arm in arms}, tasks, folder / "balance.png")
    save_curves_plot({grid.titles[arm]: measured[arm] for arm in arms}, tasks, folder / "curves.png")
    columns = ["task", "arm", "loss", "lowest on the way", "accuracy %", "targets", "last target"]
    columns += ["validation minus training"]
    return [
        "## Balance: proportions by augmented pairs",
        "",
        *markdown_table(columns, rows),
        "",
        *balance_differences(grid, measured, tasks),
        "",
        *[f"- {line}" for line in balance_verdicts(grid, measured, tasks)],
        "",
        f"![loss of the four arms]({folder.name}/balance.png)",
        "",
        f"![validation loss during training]({folder.name}/curves.png)",
        "",
    ]


def balance_differences(grid: Delvm, measured: Measured, tasks: Sequence[str]) -> list[str]:
    """A table of paired differences of the loss."""
    arms = grid.balanced
    wanted = [
        (arms.augment, arms.resampling),
        (arms.augment, arms.mixture),
        (arms.augment, arms.aug_natural),
        (arms.resampling, arms.mixture),
        (arms.aug_natural, arms.mixture),
    ]
    rows = []
    for variant, base in wanted:
        if variant in measured and base in measured:
            differences = [_difference(measured, variant, base, task) for task in tasks]
            rows.append([f"{grid.titles[variant]}, minus {grid.titles[base]}", *map(shown, differences)])
    return markdown_table(["difference of the loss", *tasks], rows)


def _difference(measured: Measured, variant: str, base: str, task: str, name: str = "loss") -> PairedDifference:
    return paired_difference(values(measured[variant], task, name), values(measured[base], task, name))


def balance_verdicts(grid: Delvm, measured: Measured, tasks: Sequence[str]) -> list[str]:
    """What the paper claims of the arms (spec 9.4 and 11.18), and whether it was found."""
    arms = grid.balanced
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


def distillation_section(grid: Delvm, measured: Measured, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Students with a teacher against labels only, at equal steps and at equal compute."""
    found = grid.distillation
    if found is None or found.plain not in measured:
        return []
    teacher = next((run for title, run in runs.items() if grid.runs[title] == found.teacher), None)
    arms = [arm for arm in (found.plain, *found.students, found.longer) if arm in measured]
    tasks = list(next(iter(measured[found.plain].values()))["tasks"])
    rows = []
    if teacher is not None:
        losses = [f"{teacher['tasks'][task]['loss']:.3f}" for task in tasks]
        rows.append(["teacher", f"{teacher['parameters']:,}", f"{teacher['seconds']:,.0f}", *losses])
    for arm in arms:
        cells = list(measured[arm].values())
        losses = [spread(list(values(measured[arm], task).values()), 3) for task in tasks]
        seconds = f"{mean(cell['seconds'] for cell in cells):,.0f}"
        rows.append([grid.titles[arm], f"{cells[0]['parameters']:,}", seconds, *losses])
    compared, lines = [], []
    for arm in found.students:
        for base in (found.plain, found.longer):
            if arm in measured and base in measured:
                differences = [_difference(measured, arm, base, task) for task in tasks]
                compared.append([f"{grid.titles[arm]}, minus {grid.titles[base]}", *map(shown, differences)])
                for task, difference in zip(tasks, differences, strict=True):
                    lines.append(f"- {task}, " + judged(difference, grid.titles[arm], grid.titles[base]))
        if arm in measured and teacher is not None:
            shares = [_share_of_gap(measured, arm, found.plain, teacher, task) for task in tasks]
            compared.append([f"{grid.titles[arm]}: share of the gap to the teacher closed", *shares])
    curves = {grid.titles[arm]: measured[arm] for arm in arms}
    folder = Path(grid.report).with_suffix("")
    save_curves_plot(curves, tasks, folder / "distillation.png")
    return [
        "## Distillation",
        "",
        *markdown_table(["model", "parameters", "seconds", *tasks], rows),
        "",
        *markdown_table(["difference of the loss", *tasks], compared),
        "",
        *lines,
        "",
        f"![validation loss of the students]({folder.name}/distillation.png)",
        "",
    ]


def _share_of_gap(measured: Measured, arm: str, plain: str, teacher: Mapping[str, Any], task: str) -> str:
    """Of plain minus teacher, how much the student gains; nothing where the teacher is not better."""
    base = mean(values(measured[plain], task).values())
    distance = base - teacher["tasks"][task]["loss"]
    return f"{(base - mean(values(measured[arm], task).values())) / distance:.0%}" if distance > 0 else "no gap"


def dose_section(grid: Delvm, measured: Measured, folder: Path) -> list[str]:
    """Claim 1: augmented copies against new images, one task alone."""
    dose = grid.doses
    if dose is None or dose.base not in measured:
        return []
    base = values(measured[dose.base], dose.task)
    rows = [[grid.titles[dose.base], spread(list(base.values()), 3), ""]]
    for arm in (*dose.copies, *dose.images):
        if arm in measured:
            found = values(measured[arm], dose.task)
            rows.append([grid.titles[arm], spread(list(found.values()), 3), shown(paired_difference(found, base))])
    points = {
        "copies": {factor: measured[arm] for arm, factor in dose.copies.items() if arm in measured},
        "images": {count: measured[arm] for arm, count in dose.images.items() if arm in measured},
    }
    save_dose_plot(points, measured[dose.base], dose.task, folder / "dose.png")
    return [
        f"## Dose: copies against new images, {dose.task} alone",
        "",
        *markdown_table(["training pairs", "loss", f"minus {grid.titles[dose.base]}"], rows),
        "",
        f"![dose curve]({folder.name}/dose.png)",
        "",
    ]


def runs_section(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Single runs beside the grid: the teacher, and tasks trained one after the other."""
    if not runs:
        return []
    tasks = list(next(iter(runs.values()))["tasks"])
    rows = []
    for title, run in runs.items():
        losses = [f"{run['tasks'][task]['loss']:.3f}" for task in tasks]
        rows.append([title, f"{run['parameters']:,}", f"{run['seconds']:,.0f}", *losses])
    return ["## Single runs", "", *markdown_table(["run", "parameters", "seconds", *tasks], rows), ""]
