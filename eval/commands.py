"""What each command of ``python -m eval`` takes: one frozen dataclass per command, its docstrings are the ``--help``.

Kept apart from the code that does the work, so that ``--help`` and argument errors need neither torch nor lm-eval.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from common.errors import DataError
from tokenizer.inputs.broken_text import BrokenText


def at_least(options: object, smallest: int, *names: str) -> None:
    """Raises ValueError for the first of the options `names` that is given and below `smallest`."""
    for name in names:
        if (value := getattr(options, name)) is not None and not value >= smallest:
            raise DataError(f"--{name} must be at least {smallest}, got {value}")


def check_limit(limit: float | None) -> None:
    """Raises ValueError for a number of documents that is neither whole nor a share below 1."""
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit == int(limit))):
        raise DataError(f"--limit must be at least 1 and whole, or a share of the documents below 1, got {limit}")


def check_batch_size(batch_size: int | str) -> None:
    """Raises ValueError for what is neither a number of sequences nor one of lm-eval's `auto`, `auto:N`."""
    automatic = isinstance(batch_size, str) and re.fullmatch(r"auto(:[1-9]\d*)?", batch_size)
    if not automatic and not (isinstance(batch_size, int) and batch_size >= 1):
        raise DataError(f"--batch_size must be at least 1, or auto, got {batch_size}")


def read_definitions(entries: list[str]) -> dict[str, str]:
    """{name: value} of NAME=VALUE entries of the command line. Raises ValueError for any other."""
    pairs = [entry.partition("=") for entry in entries]
    for entry, (name, _, value) in zip(entries, pairs, strict=True):
        if not name or not value:
            raise DataError(f"--define {entry}: must be NAME=VALUE")
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class LmOptions:
    """Runs lm-eval tasks on a model."""

    model: str
    """Run directory, checkpoint, export, folder of any transformers or GGUF model, or hub id."""
    tasks: str
    """Task, group or tag names of lm-eval, separated by commas."""
    data: str | None = None
    """Folder of local benchmark files, used in place of the hub for every task that it can serve."""
    include_path: str | None = None
    """Folder of further lm-eval YAML tasks, such as `held-out` writes. They are code: read those from elsewhere."""
    num_fewshot: int | None = None
    """Examples in the prompt; None takes each task's own number."""
    limit: int | float | None = None
    """Documents per task, or the share of them below 1; None takes all. For trying out, not for results."""
    batch_size: int | str = 1
    """Sequences per forward pass; auto takes as many as the memory holds (lm-eval's search, on a CPU a bound)."""
    device: str | None = None
    """Torch device; None takes the accelerator if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; auto is the stored one, as in lm-eval. GGUF files are float16, which CPUs are slow in."""
    trust_remote_code: bool = False
    """Let a hub model that is not ours run its own Python code."""
    output: str | None = None
    """Folder for NAME.json and NAME.png; None writes them to RUN/eval when the model is a run, else nowhere."""
    name: str = "lm"
    """Name of the result files; give another to keep several results side by side in a run's report."""

    def __post_init__(self) -> None:
        check_limit(self.limit)
        check_batch_size(self.batch_size)
        at_least(self, 0, "num_fewshot")


@dataclass(frozen=True)
class HeldOutOptions:
    """Makes lm-eval tasks from held-out text: bits per byte per language, and choosing the true continuation."""

    data: str
    """Folder with SPLIT.LANGUAGE.jsonl files, such as `python -m data_pipeline sample` writes (also .json, .txt,
    .parquet, packed or not), or one file."""
    output: str
    """Folder for the YAML tasks and their data; give it to lm-eval as --include_path."""
    split: str = "valid"
    """Which files to take; never the training ones."""
    documents: int = 64
    """Documents per language for bits per byte."""
    characters: int = 2000
    """Characters kept of each of those documents."""
    items: int = 100
    """Continuation questions per language."""
    seed: int = 1234
    """Seeds the choice of documents, passages and distractors."""
    broken_text: BrokenText = "skip"
    """Documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of all;
    replace what is broken by U+FFFD, counted; or refuse the first one."""

    def __post_init__(self) -> None:
        at_least(self, 0, "documents", "items")
        at_least(self, 1, "characters")


@dataclass(frozen=True)
class LocalTasksOptions:
    """Writes lm-eval tasks that read local benchmark files, for use with plain `lm_eval --include_path`."""

    data: str
    """Folder of local benchmark files."""
    tasks: str
    """Task or group names, separated by commas."""
    output: str
    """Folder for the YAML tasks and their data."""


@dataclass(frozen=True)
class CollapseOptions:
    """Measures diversity, effective dimension and isotropy of the hidden states, layer by layer."""

    model: list[str]
    """One or more models (see `lm`); NAME=PATH gives a model its name in the plots."""
    text: list[str]
    """Held-out files (.jsonl, .json, .txt, each also .gz, .bz2, .xz, .zst; .parquet); documents are taken in turn."""
    output: str
    """Folder for collapse.json and the plots."""
    tokens: int = 10_000
    """Tokens to measure on, the dropped first positions not counted; take at least 10,000."""
    sequence_length: int = 512
    """Tokens per sequence."""
    threshold: float = 0.8
    """Explained variance that defines the effective dimension."""
    batch_size: int = 4
    """Sequences per forward pass."""
    scatter_layers: list[int] | None = None
    """Also plot the five most frequent tokens in the first three components of these layers."""
    device: str | None = None
    """Torch device; None takes the accelerator if there is one."""
    broken_text: BrokenText = "skip"
    """Documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of all;
    replace what is broken by U+FFFD, counted; or refuse the first one."""

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens", "sequence_length", "batch_size")
        if not 0 < self.threshold <= 1:
            raise DataError(f"--threshold must lie between 0 and 1, got {self.threshold}")


@dataclass(frozen=True)
class ForgettingOptions:
    """Compares the loss on each part of a run's data when it was trained with the loss of the final model."""

    run: list[str]
    """One or more run directories; NAME=PATH gives a run its name in table and plot."""
    output: str
    """Folder for forgetting.json and forgetting.png."""
    parts: int = 8
    """Sequential parts of round 1."""
    batches: int | None = None
    """Global batches to measure in each part, evenly spaced; None takes all."""
    device: str | None = None
    """Torch device; None takes the accelerator if there is one."""

    def __post_init__(self) -> None:
        for name in ("parts", "batches"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"--{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class GenerateOptions:
    """Continues a few prompts with an exported model."""

    model: str
    """Exported folder."""
    prompt: list[str] | None = None
    """Texts to continue; None takes a few in English and Chinese."""
    tokens: int = 48
    """Tokens to add at most."""
    temperature: float = 0.8
    """Sampling temperature; 0 takes the likeliest token."""
    seed: int = 1234
    """Seeds the draws."""
    output: str | None = None
    """JSON file for the samples; RUN/samples.json appears in the run's report."""
    trust_remote_code: bool = False
    """Let a model that is not ours run the Python code in its folder. Ours never need it."""

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens")
        at_least(self, 0, "temperature")


@dataclass(frozen=True)
class OcrOptions:
    """Reads word images: accuracy on every benchmark of a folder, ours and other recognisers side by side."""

    model: list[str]
    """One or more recognisers: run, checkpoint or export; `rapidocr` for that package's. NAME=PATH names one."""
    data: str
    """Folder of benchmarks (.parquet files, LMDB or label folders), or one of them."""
    output: str | None = None
    """Folder for ocr.json, ocr.txt and a picture of each recogniser's worst errors."""
    charset: str = "36"
    """What label and reading are brought to before they are compared: 36, 62, 94, or a text file."""
    decoding: Literal["autoregressive", "parallel"] = "autoregressive"
    """Character by character, or all at once."""
    refinements: int = 1
    """Times that every character is predicted again, given the others."""
    batch_size: int = 64
    """Images of one forward pass."""
    limit: int | None = None
    """Images per benchmark; None takes all. For trying out, not for results."""
    max_unreadable: float = 0.0
    """Share of a benchmark's images that may be damaged; they are named and left out."""
    device: str | None = None
    """Torch device; None takes the accelerator if there is one."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "limit")
        at_least(self, 0, "refinements", "max_unreadable")


@dataclass(frozen=True)
class VisionOptions:
    """Measures visual language models on held-out image pairs: losses, visual prompting, baselines, a picture."""

    model: list[str]
    """One or more models: run, checkpoint or export; NAME=PATH names one."""
    sets: str
    """YAML of the held-out pairs (see configs/delvm/studies/sets_cpu.yaml)."""
    output: str
    """Folder for vision.json, vision.txt and grid_SET.png."""
    define: list[str] = field(default_factory=list)
    """NAME=VALUE for `{NAME}` in the YAML, such as data=DIR."""
    pairs_in_prompt: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    """Numbers of example pairs to try."""
    control: bool = False
    """Also ask with example pairs of the other sets, and with permuted targets: is the prompt followed?"""
    queries: int | None = None
    """Held-out pairs per set, drawn once; None takes all."""
    examples: int | None = 256
    """Pairs that examples, mean answer and code frequencies are taken from, drawn once; None takes all."""
    sentence_pairs: int = 4
    """Pairs of a sentence on which the loss is measured."""
    passes: int = 1
    """Times that all held-out pairs are put into sentences anew."""
    batch_size: int = 32
    """Prompts, sentences or images of one batch."""
    seed: int = 1234
    """Seeds the choice of examples and the sentences."""
    device: str | None = None
    """Torch device; None takes the accelerator if there is one."""

    def __post_init__(self) -> None:
        read_definitions(self.define)
        at_least(self, 1, "queries", "examples", "sentence_pairs", "passes", "batch_size")
        if not self.pairs_in_prompt or min(self.pairs_in_prompt) < 0:
            raise DataError(f"--pairs_in_prompt must be numbers of 0 or more, got {self.pairs_in_prompt}")


@dataclass(frozen=True)
class ReportOptions:
    """Renders one self-contained report.html from a run directory."""

    run: str
    """Run directory."""
    output: str | None = None
    """File to write; None writes RUN/report.html."""


@dataclass(frozen=True)
class ShapesOptions:
    """Trains parameter-matched shapes on the same tokens: quality against tokens/s, and what correlates with it."""

    config: str
    """YAML of the sweep (see configs/tiny_lm/studies/)."""
    stage: Literal["all", "list", "train", "evaluate", "report"] = "all"
    """Only list the shapes, stop after training or evaluation, or only rewrite the report from what is there."""


@dataclass(frozen=True)
class PreparedGridOptions:
    """A grid whose YAML has definitions and a preparation; resumes after any kill."""

    config: str
    """YAML of the grid (see configs/)."""
    define: list[str] = field(default_factory=list)
    """NAME=VALUE for definitions of the YAML, such as donor=PATH; `package:NAME` is an installed package's folder."""
    stage: Literal["all", "prepare", "train", "evaluate", "report"] = "all"
    """Stop after the preparation or the training, measure only, or only rewrite the report from what is there."""

    def __post_init__(self) -> None:
        read_definitions(self.define)


@dataclass(frozen=True)
class LadderOptions(PreparedGridOptions):
    """The tiny-model recipe one trick after another, at one parameter budget; resumes after any kill."""


@dataclass(frozen=True)
class ScalingOptions(PreparedGridOptions):
    """Trains a grid of model sizes and data volumes, fits scaling laws, and predicts what was held out."""


@dataclass(frozen=True)
class CompareOptions(PreparedGridOptions):
    """Trains any variants of any task and compares them with a base, seed by seed."""


@dataclass(frozen=True)
class DelvmOptions(PreparedGridOptions):
    """DeLVM's claims on small data: balance by augmentation, distillation, visual prompting."""
