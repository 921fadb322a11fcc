"""Bits per byte of held-out text after the same seconds: `python benchmarks/time_to_quality.py`.

    ours           the quick start's recipe, whatever it is now, through pretrain/train.py
    transformers   LlamaForCausalLM of equal parameters in transformers' Trainer (benchmarks/llama_trainer.py), at its
                   default learning rate and at others

Same machine, text, held-out documents, ranks, batch, sequence length and share of warm-up, which are those of our
recipe; contenders take turns, seed by seed. What is in the seconds, how the steps that fit are found, and how bits per
byte are counted: benchmarks/time_to_quality_runs.py. `--ours` and `--theirs` change fields of either (the batch of
transformers alone, say: `--theirs per_device_train_batch_size=16`).
Tokenizers are trained on the same text; with several --vocab_sizes each contender is judged by its best one, as
transformers is by its best learning rate.

A cell is a contender at a size, a budget, a vocabulary and a seed: OUTPUT/cells/.../cell.json. Cells that are there are
not run again, a run that was cut off starts over, and a cell that other settings made is refused. Checkpoints are
removed when they are scored. Ends with tables, OUTPUT/time_to_quality.png and one JSON line.

The curve of another trainer is drawn beside ours with --also FILE, a JSON list of

    {"name": "a speed run", "size": "4m", "points": [{"seconds": 300, "bits_per_byte": {"en": 1.9, "zh": 2.3}}]}
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn

import time_to_quality_runs as runs
from llama_trainer import write_blocks
from measure import finish
from time_to_quality_plot import draw, other_curves

from common.atomic_files import write_whole
from common.untrusted_files import read_json
from data_pipeline.identity import explain_mismatch
from data_pipeline.shards.token_shards import TokenShards
from eval.language.held_out import find_documents
from pretrain.interruption import terminable
from pretrain.quickstarts.commands_once import Pipeline
from pretrain.quickstarts.text import QuickstartConfig
from pretrain.quickstarts.walkthrough import PYTHON, option

OURS = "ours"
DEFAULT_RATE = "default"
MARGIN = 0.15
"""Bits per byte, mean of the languages, by which ours is wanted below the best run of transformers."""
OVERHEAD_SECONDS = 90.0
"""Of a cell beside its budget (calibration, scoring), until one has been measured."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run."""

    contender: str
    """OURS, or a name of `peers`."""
    size: str
    seconds: float
    vocabulary: int
    seed: int

    @property
    def name(self) -> str:
        """Also its folder."""
        return f"{self.contender}/{self.size}/{self.seconds:g}s/v{self.vocabulary}/seed{self.seed}"


def peers(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The other contenders: name -> arguments of TrainingArguments."""
    given = dict(each.split("=", 1) for each in options.theirs)
    return {
        f"transformers-{rate}-{schedule}": {name: _plain(value) for name, value in given.items()}
        | {"lr_scheduler_type": schedule}
        | ({} if rate == DEFAULT_RATE else {"learning_rate": float(rate)})
        for schedule in options.schedules
        for rate in options.rates
    }


def _plain(text: str) -> Any:
    """A number, a truth value or a mapping where the text is one in JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """All cells that the options ask for, in the order in which they run: whole comparisons first."""
    found = [
        Cell(name, size, seconds, vocabulary, seed)
        for seed in options.seeds
        for seconds in options.seconds
        for size in options.size
        for vocabulary in options.vocab_sizes
        for name in (OURS, *peers(options))
    ]
    return [cell for cell in found if any(fnmatch(cell.name, pattern) for pattern in options.only)]


def read_result(file: Path, identity: Mapping[str, Any]) -> Result | None:
    """What a cell has measured; None if it is not done.

    Raises:
        ValueError: it was made by other settings, or is no result.
    """
    if not file.is_file():
        return None
    result = read_json(file, _unreadable)
    if not isinstance(result, dict) or "identity" not in result:
        raise _unreadable(f"{file}: not the result of a cell")
    if difference := explain_mismatch(result["identity"], identity):
        raise ValueError(f"{file}: was measured with other settings; remove it or take another --output\n{difference}")
    return result


def _unreadable(problem: str) -> ValueError:
    return ValueError(f"{problem}; remove the file, and the cell is run again")


def held_out(documents: Mapping[str, Sequence[str]], limit: int) -> dict[str, list[str]]:
    """Whole documents of each language, drawn without order until `limit` UTF-8 bytes are reached."""
    chosen: dict[str, list[str]] = {}
    for language, texts in documents.items():
        size = 0
        for text in random.Random(0).sample(texts, len(texts)):
            if size >= limit:
                break
            chosen.setdefault(language, []).append(text)
            size += len(text.encode())
    return chosen


class Race:
    """All cells of one output folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output = options, options.output.resolve()
        self.cells = cells_of(options)

    @cache  # noqa: B019  # one race per process
    def data(self, vocabulary: int) -> runs.Data:
        """Text, tokenizer and shards, made where they are not there yet."""
        root = self.output / "data"
        corpus, made = root / "corpus", root / f"v{vocabulary}"
        pipeline = Pipeline(root)
        pipeline.run("sample", "text, split by document", corpus, *PYTHON, "data_pipeline", "sample",
                     "--output", str(corpus), *option("source", self.options.source))  # fmt: skip
        texts = sorted(corpus.glob("train.*.jsonl"))
        pipeline.run(f"tokenizer.{vocabulary}", f"a tokenizer of {vocabulary} pieces", made / "tokenizer",
                     *PYTHON, "tokenizer", "train", "--input", *map(str, texts), "--vocab_size", str(vocabulary),
                     "--output", str(made / "tokenizer"))  # fmt: skip
        shards = {text: made / text.name.removesuffix(".jsonl") for text in texts}
        for text, directory in shards.items():
            pipeline.run(f"{directory.name}.{vocabulary}", f"token shards of {text.name}", directory,
                         *PYTHON, "data_pipeline", "prepare", "--input", str(text), "--tokenizer",
                         str(made / "tokenizer"), "--output", str(directory))  # fmt: skip
        return runs.Data(made / "tokenizer", tuple(shards.values()), vocabulary)

    @cache  # noqa: B019
    def documents(self) -> dict[str, list[str]]:
        """The held-out texts by language."""
        return held_out(find_documents(self.output / "data" / "corpus", "valid"), self.options.valid_bytes)

    @cache  # noqa: B019
    def recipe(self, size: str, vocabulary: int) -> runs.Recipe:
        """What the house trains at a size."""
        shape = runs.ROOT / "configs" / "pangu_pi" / "models" / f"pangu_pi_{size}.yaml"
        config = runs.ROOT / QuickstartConfig.config
        return runs.Recipe.resolve(config, shape, self.data(vocabulary), self.options.ours)

    def racer(self, cell: Cell) -> runs.Racer:
        """The contender of a cell."""
        data, recipe = self.data(cell.vocabulary), self.recipe(cell.size, cell.vocabulary)
        if cell.contender == OURS:
            return runs.Ours(recipe, data, cell.seed, self.options.ranks)
        length = recipe.config.task.sequence_length
        blocks = data.tokenizer.parent / f"blocks_{length}.npy"
        newest = max((directory / "meta.json").stat().st_mtime for directory in data.train)
        if not blocks.is_file() or blocks.stat().st_mtime < newest:
            streams = [TokenShards(directory) for directory in data.train]
            write_blocks([stream.read(0, stream.tokens) for stream in streams], length, blocks)
        arguments = peers(self.options)[cell.contender]
        return runs.Theirs(recipe, data, cell.seed, self.options.ranks, blocks=blocks, arguments=arguments)

    def file(self, cell: Cell) -> Path:
        """The cell's result."""
        return self.output / "cells" / cell.name / "cell.json"

    def identity(self, cell: Cell, racer: runs.Racer) -> dict[str, Any]:
        """What decides the cell's result, the machine aside."""
        shared = {"source": self.options.source, "ranks": self.options.ranks, "valid_bytes": self.options.valid_bytes}
        return json.loads(json.dumps(shared | racer.identity()))

    def done(self) -> dict[Cell, Result]:
        """The cells that are finished; data and recipes of the others are not made for it."""
        found = [cell for cell in self.cells if self.file(cell).is_file()]
        results = {cell: read_result(self.file(cell), self.identity(cell, self.racer(cell))) for cell in found}
        return {cell: result for cell, result in results.items() if result is not None}

    def run(self, cell: Cell, guess: int) -> Result:
        """Calibrates, trains and scores one cell, and writes its result."""
        began, folder, racer = time.perf_counter(), self.file(cell).parent, self.racer(cell)
        pace, steps = runs.calibrate(racer, folder / "calibration", cell.seconds, guess)
        print(f"   start {pace.start:.1f} s, step {pace.step:.3f} s, checkpoint {pace.save:.1f} s: {steps} steps",
              flush=True)  # fmt: skip
        points, length = [], racer.recipe.config.task.sequence_length
        for step, seconds, checkpoint in runs.train(racer, folder / "training", steps):
            directory = racer.final(checkpoint) if step == steps else checkpoint
            scores = runs.score(directory, racer.data.tokenizer, self.documents(), length)
            points.append({"step": step, "seconds": seconds, "bits_per_byte": scores})
            for each in {checkpoint, directory}:
                shutil.rmtree(each)
        result = {
            "cell": cell.name, "contender": cell.contender, "size": cell.size, "budget": cell.seconds,
            "vocabulary": cell.vocabulary, "seed": cell.seed, "parameters": racer.parameters, "steps": steps,
            "tokens": racer.samples(steps) * length, "points": points, "pace": vars(pace),
            "took": time.perf_counter() - began, "identity": self.identity(cell, racer),
        }  # fmt: skip
        write_whole(self.file(cell), json.dumps(result, indent=1))
        return result

    def expected(self, cell: Cell, results: Mapping[Cell, Result]) -> float:
        """Seconds that a cell will take, from those that are done."""
        alike = [result["took"] - each.seconds for each, result in results.items() if each.size == cell.size]
        own = [result["took"] - each.seconds for each, result in results.items()
               if (each.size, each.contender) == (cell.size, cell.contender)]  # fmt: skip
        return cell.seconds + (mean(own or alike) if alike else OVERHEAD_SECONDS)

    def run_all(self) -> dict[Cell, Result]:
        """Every cell that is not done, with what is left of the time."""
        results = self.done()
        waiting = [cell for cell in self.cells if cell not in results]
        for number, cell in enumerate(waiting):
            left = sum(self.expected(each, results) for each in waiting[number:])
            print(f"[{number + 1}/{len(waiting)}] {cell.name}: about {left / 60:.0f} minutes left", flush=True)
            same = [
                result
                for each, result in results.items()
                if (each.contender, each.size, each.seconds) == (cell.contender, cell.size, cell.seconds)
            ]
            results[cell] = self.run(cell, guess=same[-1]["steps"] if same else 0)
            print(json.dumps({name: value for name, value in results[cell].items() if name != "identity"}), flush=True)
        return {cell: results[cell] for cell in self.cells}


def final(result: Result) -> float:
    """Bits per byte at the end, the mean of the languages."""
    return mean(result["points"][-1]["bits_per_byte"].values())


def tables(results: Mapping[Cell, Result]) -> dict[str, Any]:
    """Prints a table for every size and budget: means over the seeds, and ours against the best of transformers."""
    rows: dict[str, Any] = {}
    for size, seconds in dict.fromkeys((cell.size, cell.seconds) for cell in results):
        groups: dict[tuple[str, int], dict[int, Result]] = {}
        for cell, result in results.items():
            if (cell.size, cell.seconds) == (size, seconds):
                groups.setdefault((cell.contender, cell.vocabulary), {})[cell.seed] = result
        languages = list(next(iter(next(iter(groups.values())).values()))["points"][-1]["bits_per_byte"])
        print(f"\n{size}, {seconds:g} s: bits per byte of held-out text, means over the seeds")
        print(f"{'':28}{'pieces':>8}{'parameters':>12}{'seeds':>6}{'steps':>8}{'seconds':>9}"
              + "".join(f"{name:>8}" for name in [*languages, "mean"]) + "   lowest to highest")  # fmt: skip
        table = []
        for (contender, vocabulary), seeds in groups.items():
            each, ends = list(seeds.values()), [result["points"][-1] for result in seeds.values()]
            row = {
                "contender": contender, "vocabulary": vocabulary, "parameters": each[0]["parameters"],
                "steps": mean(result["steps"] for result in each), "seconds": mean(end["seconds"] for end in ends),
                "bits_per_byte": {name: mean(end["bits_per_byte"][name] for end in ends) for name in languages},
                "mean": {seed: final(result) for seed, result in seeds.items()},
            }  # fmt: skip
            table.append(row)
            means = list(row["mean"].values())
            scores = "".join(f"{score:8.3f}" for score in [*row["bits_per_byte"].values(), mean(means)])
            print(f"{contender:28}{vocabulary:8}{row['parameters']:12,}{len(means):6}{row['steps']:8,.0f}"
                  f"{row['seconds']:9.1f}{scores}   {min(means):.3f} to {max(means):.3f}")  # fmt: skip
        rows[f"{size}, {seconds:g} s"] = {"rows": table, "margin": margin(table)}
    return rows


def margin(table: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """By how much our best row is below the best of the others, seed by seed; None while one of them is missing."""
    score = lambda row: mean(row["mean"].values())  # noqa: E731
    ours, others = ([row for row in table if (row["contender"] == OURS) is own] for own in (True, False))
    if not (ours and others):
        return None
    mine, best = min(ours, key=score), min(others, key=score)
    gains = [best["mean"][seed] - value for seed, value in mine["mean"].items() if seed in best["mean"]]
    if not gains:
        return None
    print(f"ours is {mean(gains):.3f} ({min(gains):.3f} to {max(gains):.3f}) below {best['contender']} with "
          f"{best['vocabulary']} pieces, wanted >= {MARGIN}")  # fmt: skip
    return {"mean": mean(gains), "lowest": min(gains), "highest": max(gains)}


def _check(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    """Whether the race can be run as it was asked for; `refuse` is told what cannot be."""
    for size in options.size:
        if not (runs.ROOT / "configs" / "pangu_pi" / "models" / f"pangu_pi_{size}.yaml").is_file():
            refuse(f"--size {size}: there is no configs/pangu_pi/models/pangu_pi_{size}.yaml")
    for rate in options.rates:
        if rate != DEFAULT_RATE and not (_is_number(rate) and 0 < float(rate) < math.inf):
            refuse(f"--rates {rate}: it must be a number above 0, or {DEFAULT_RATE}")
    for seconds in options.seconds:
        if not 0 < seconds < math.inf:
            refuse(f"--seconds {seconds:g}: it must be a number above 0")
    for name in ("ours", "theirs"):
        for each in getattr(options, name):
            if not each.partition("=")[0] or "=" not in each:
                refuse(f"--{name} {each}: it must be NAME=VALUE")
    for name in ("ranks", "valid_bytes"):
        if getattr(options, name) < 1:
            refuse(f"--{name} {getattr(options, name)}: it must be at least 1")
    if not cells_of(options):
        refuse(f"--only {' '.join(options.only)}: no cell has such a name; --dry_run without it lists them")


def _is_number(text: str) -> bool:
    return isinstance(_plain(text), (int, float))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", nargs="+", default=["1m", "4m", "10m"], help="of configs/pangu_pi/models/pangu_pi_SIZE.yaml"
    )
    parser.add_argument("--seconds", nargs="+", type=float, default=[300.0], help="budgets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, default=QuickstartConfig.ranks, help="processes of every contender")
    parser.add_argument("--vocab_sizes", nargs="+", type=int, default=[QuickstartConfig.vocab_size])
    parser.add_argument("--rates", nargs="+", default=[DEFAULT_RATE, "3e-4", "1e-3", "3e-3"],
                        help="learning rates of transformers")  # fmt: skip
    parser.add_argument("--schedules", nargs="+", default=["linear"], help="of transformers: linear, cosine")
    parser.add_argument("--ours", nargs="+", default=[], metavar="NAME=VALUE", help="fields of pretrain/train.py")
    parser.add_argument("--theirs", nargs="+", default=[], metavar="NAME=VALUE", help="fields of TrainingArguments")
    parser.add_argument("--source", nargs="+", default=[], help="local text in place of the quick start's corpus")
    parser.add_argument("--valid_bytes", type=int, default=200_000, help="of held-out text per language, at most about")
    parser.add_argument("--output", type=Path, default=Path("runs/time_to_quality"))
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of cells, such as 'ours/4m/*'")
    parser.add_argument("--also", nargs="+", type=Path, default=[], help="JSON files of further curves")
    parser.add_argument("--dry_run", action="store_true", help="list the cells and the time they will take")
    options = parser.parse_args(arguments)
    _check(options, parser.error)
    return options


def main() -> None:
    options = parse_options()
    try:
        _run(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"time_to_quality: {error}")


def _run(options: argparse.Namespace) -> None:
    race, also = Race(options), other_curves(options.also)
    if options.dry_run:
        files = {cell: race.file(cell) for cell in race.cells}
        done = {cell: read_json(file, _unreadable) for cell, file in files.items() if file.is_file()}
        left = {cell: 0.0 if cell in done else race.expected(cell, done) for cell in race.cells}
        for cell, seconds in left.items():
            print(f"{cell.name:56}" + (f"about {seconds / 60:.1f} minutes" if seconds else "done"))
        print(f"{len(left) - len(done)} of {len(left)} cells to run: about {sum(left.values()) / 3600:.1f} hours")
        return
    with terminable():
        results = race.run_all()
    curves = [
        {"name": result["contender"], "size": result["size"], "points": result["points"]} for result in results.values()
    ]
    draw([*curves, *also], race.output / "time_to_quality.png")
    made = tables(results)
    finish("time_to_quality", made, ranks=options.ranks, ours=options.ours, theirs=options.theirs, also=also)


if __name__ == "__main__":
    main()
