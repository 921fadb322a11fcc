"""DeLVM's claims on small data: balance, distillation, dose, prompting (docs/methods/delvm.md: experiments).

    experiment.yaml --> preparation: visual tokenizer, shards of every task, plain and augmented, a teacher
                    --> a grid of runs (`eval/grid/grid.py`): the 2 x 2 of proportions and pairs, students, doses
                    --> loss per task on held-out and on training sentences; prompting (`eval/prompting/run.py`)
                    --> one report (`eval/studies/delvm_report.py`)

All arms have the same steps, tokens and, per seed, the same initial weights, so differences are paired.
Everything resumes: finished commands and cells are not done again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.commands import DelvmOptions, VisionOptions
from eval.grid.grid import is_trained, make_cell, run_facts
from eval.grid.preparation import PreparedGrid, read_options, run_stages


@dataclass(frozen=True)
class Balance:
    """The 2 x 2 of the balance: which arm stands where (docs/methods/delvm.md: experiments)."""

    mixture: str
    """Natural proportions, original pairs: the first baseline."""
    aug_natural: str
    """Natural proportions, augmented pairs."""
    resampling: str
    """Uniform over tasks, original pairs: the second baseline."""
    augment: str
    """Uniform over tasks, augmented pairs: the method."""

    def arms(self) -> list[str]:
        """The four arms, the baselines first."""
        return [self.mixture, self.aug_natural, self.resampling, self.augment]


@dataclass(frozen=True)
class Distilled:
    """Students beside the run they are compared with."""

    plain: str
    """Labels only, equal steps."""
    longer: str
    """Labels only, equal compute."""
    students: list[str]
    """Those with the teacher."""
    teacher: str
    """Run directory of the teacher."""


@dataclass(frozen=True)
class Dose:
    """Claim 1: augmented copies against new images, on one task alone."""

    task: str
    """The task, a name among the validation sets."""
    base: str
    """The variant with the fewest pairs."""
    copies: dict[str, int]
    """{variant: copies of each pair}."""
    images: dict[str, int]
    """{variant: images}, no copies."""


@dataclass(frozen=True)
class Prompted:
    """What `eval vision` is asked about the trained models."""

    sets: str
    """YAML of the held-out pairs."""
    variants: list[str]
    """Whose models, of all seeds."""
    main: str
    """The variant whose numbers stand in the report's prompting table; the others are compared with it."""
    define: dict[str, str] = field(default_factory=dict)
    """Definitions of that YAML."""
    queries: int | None = None
    """Held-out pairs per set."""


@dataclass(frozen=True, kw_only=True)
class Delvm(PreparedGrid):
    """The experiment's YAML. `{name}` in any string stands for a definition."""

    titles: dict[str, str]
    """What to call each variant in the tables."""
    scarce: list[str]
    """Tasks with few pairs, names among the validation sets."""
    balance: Balance
    """The 2 x 2."""
    distilled: Distilled | None = None
    """The students, if there are any."""
    dose: Dose | None = None
    """The dose curve, if there is one."""
    prompted: Prompted | None = None
    """What is asked of the trained models, if anything."""
    runs: dict[str, str] = field(default_factory=dict)
    """{title: directory} of runs that the preparation trains and that are measured like cells."""
    sentences: int = 50
    """Training sentences per source on which the train-validation gap is measured."""

    def __post_init__(self) -> None:
        parts = [*self.balance.arms()]
        if self.distilled is not None:
            parts += [self.distilled.plain, self.distilled.longer, *self.distilled.students]
        if self.dose is not None:
            parts += [self.dose.base, *self.dose.copies, *self.dose.images]
        if self.prompted is not None:
            parts += [self.prompted.main, *self.prompted.variants]
        for name in parts:
            if name not in self.variants:
                raise ValueError(f"{name!r} is not among the variants")
        for name in self.variants:
            if name not in self.titles:
                raise ValueError(f"titles: there is none for {name!r}")


def measure_run(directory: Path, sentences: int) -> dict[str, Any]:
    """Losses of a trained run on all its validation sets and on sentences of its training sources.

    Args:
        directory: the run.
        sentences: of each training source, evenly spaced over its passes.

    Returns:
        what every grid cell has (`grid.run_facts`); ``parameters``; ``tasks`` {validation set: losses as
        `sentence_losses.summarise` gives them}; ``train``, the same on the training pairs of the set's task; and
        ``curve`` [[step, {validation set: loss}], ...].
    """
    from data_pipeline.shards.sentence_source import SentenceSource
    from eval.prompting.encoded_pairs import VisualModel
    from eval.prompting.sentence_losses import sentence_losses, summarise
    from eval.report.run_record import read_run

    record = read_run(directory)
    task = record.config["task"]["init_args"]
    model = VisualModel.open(str(directory), None)
    images, n = task["images_per_sentence"], model.tokenizer.tokens_per_image
    batch = record.config["batch"]["micro_size"]

    def measured(source: SentenceSource, limit: int | None) -> dict[str, Any]:
        count = len(source) if limit is None else min(limit, len(source))
        chosen = np.linspace(0, len(source) - 1, count).astype(int)
        samples = [source.sample(int(number)) for number in chosen]
        rows_NT = np.stack([np.append(sample["input_ids"], sample["labels"][-1]) for sample in samples])
        return summarise(sentence_losses(model.lm, rows_NT, batch), n)

    held_out = {name: SentenceSource(folder, images) for name, folder in task["valid"].items()}
    names = {source.meta.inputs["pairs"]["task"]: name for name, source in held_out.items()}
    trained = [SentenceSource(folder, images, task["passes"]) for folder in task["train"]]
    prefix = "loss/"
    return {
        **run_facts(directory),
        "parameters": sum(parameter.numel() for parameter in model.lm.parameters()),
        "tasks": {name: measured(source, None) for name, source in held_out.items()},
        "train": {names[source.meta.inputs["pairs"]["task"]]: measured(source, sentences) for source in trained},
        "curve": [
            [row["step"], {name.removeprefix(prefix): row[name] for name in row if name.startswith(prefix)}]
            for row in record.rows["valid"]
        ],
    }


def measure_runs(grid: Delvm) -> dict[str, dict[str, Any]]:
    """Measurements of the runs that the preparation made; each is kept in its folder as run.json."""
    found = {}
    for title, directory in grid.runs.items():
        path = Path(directory) / "run.json"
        if not path.is_file():
            path.write_text(json.dumps(measure_run(Path(directory), grid.sentences), indent=1))
        found[title] = json.loads(path.read_text())
    return found


def prompt_models(grid: Delvm) -> dict[str, Any] | None:
    """`eval vision` on the models trained so far, kept in OUTPUT/vision/vision.json until there are others."""
    from eval.prompting.run import run as run_vision

    if (prompted := grid.prompted) is None:
        return None
    path = Path(grid.output) / "vision" / "vision.json"
    cells = [make_cell(grid, variant, seed) for variant in prompted.variants for seed in grid.seeds]
    models = {f"{cell.variant}/seed{cell.seed}": str(cell.directory) for cell in cells if is_trained(cell)}
    if path.is_file() and list((found := json.loads(path.read_text()))["models"]) == list(models):
        return found
    if not models:
        return None
    named = [f"{name}={directory}" for name, directory in models.items()]
    define = [f"{name}={value}" for name, value in prompted.define.items()]
    options = VisionOptions(
        named, prompted.sets, str(path.parent), define, control=True, queries=prompted.queries, batch_size=64
    )
    return run_vision(options)


def run(options: DelvmOptions) -> None:
    """``python -m eval delvm``."""
    from eval.studies.delvm_report import write_delvm_report

    grid = read_options(options, Delvm)
    run_stages(
        grid,
        options.stage,
        lambda cell: measure_run(cell.directory, grid.sentences),
        lambda measured: write_delvm_report(grid, measured, measure_runs(grid), prompt_models(grid), options),
    )
