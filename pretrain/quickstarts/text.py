"""The quick start: from raw text to an evaluated, exported model, by the same commands that a user would type.

sample -> tokenizer train -> prepare (per split and language) -> deepspeed train -> lm-eval -> export -> report
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.find_model import newest_checkpoints
from pretrain.errors import ConfigurationError
from pretrain.quickstarts.commands_once import Pipeline
from pretrain.quickstarts.walkthrough import PYTHON, Walkthrough, option, train_command

BUILTIN_WEIGHTS = [0.285, 0.715]
"""Of English and Chinese in the built-in corpus, which has them as 0.33 to 0.67: English is learned from less."""


@dataclass(frozen=True)
class QuickstartConfig(Walkthrough):
    """What the quick start may be asked to do differently."""

    output: str = "runs/quickstart"
    """Folder for everything it makes."""
    config: str = "configs/pangu_pi/runs/quickstart.yaml"
    """Training configuration."""
    source: list[str] = field(default_factory=list)
    """Local files, folders or a hub data set in place of the built-in English and Chinese corpus."""
    vocab_size: int = 6144
    """Pieces of the tokenizer."""

    COUNTS = ("steps", "ranks", "vocab_size")


def quickstart(config: QuickstartConfig) -> Path:
    """Runs every step; returns the report's path.

    Raises:
        StepFailed: a step failed.
        ConfigurationError: the source has no text to train or to validate on.
    """
    root = Path(config.output)
    corpus, tokenizer, shards, run = root / "corpus", root / "tokenizer", root / "shards", root / "train"
    tasks, export = root / "tasks", root / "export"
    pipeline = Pipeline(root)
    pipeline.run(
        "sample", "a real corpus, split by document", corpus,
        *PYTHON, "data_pipeline", "sample", "--output", str(corpus), *option("source", config.source),
    )  # fmt: skip

    texts = {split: sorted(corpus.glob(f"{split}.*.jsonl")) for split in ("train", "valid")}
    for split, files in texts.items():
        if not files:
            raise ConfigurationError(f"{corpus}: the corpus has no {split} text; give --source more documents")
    pipeline.run(
        "tokenizer", f"a tokenizer of {config.vocab_size} pieces", tokenizer,
        *PYTHON, "tokenizer", "train", "--input", *map(str, texts["train"]),
        "--vocab_size", str(config.vocab_size), "--output", str(tokenizer),
    )  # fmt: skip
    made: dict[str, dict[str, str]] = {"train": {}, "valid": {}}
    for file in (file for files in texts.values() for file in files):
        split, language, _ = file.name.split(".")
        made[split][language] = str(shards / f"{split}.{language}")
        pipeline.run(
            f"prepare.{split}.{language}", f"token shards of {split}.{language}", Path(made[split][language]),
            *PYTHON, "data_pipeline", "prepare", "--input", str(file), "--tokenizer", str(tokenizer),
            "--output", made[split][language],
        )  # fmt: skip
    pipeline.run(
        "train", f"training on {config.ranks} ranks", run,
        *train_command(
            config, run, train=list(made["train"].values()), valid=made["valid"],
            model_overrides={"vocab_size": config.vocab_size},
            **({} if config.source else {"weights": BUILTIN_WEIGHTS}),
        ),
        continues=True,
    )  # fmt: skip
    pipeline.run(
        "tasks", "lm-eval tasks from the held-out documents", tasks,
        *PYTHON, "eval", "held-out", "--data", str(corpus), "--output", str(tasks),
    )  # fmt: skip
    names = sorted(path.stem for path in tasks.glob("*.yaml"))
    pipeline.run(
        "lm", "lm-eval", run / "eval",
        *PYTHON, "eval", "lm", "--model", str(run), "--include_path", str(tasks), "--tasks", ",".join(names),
        "--output", str(run / "eval"),
    )  # fmt: skip
    pipeline.run(
        "export", "export in transformers format, reloaded and checked", export,
        *PYTHON, "arch", "export", "--model", str(newest_checkpoint(run)), "--out", str(export),
    )  # fmt: skip
    pipeline.run(
        "generate", "a few generated lines", run / "samples.json",
        *PYTHON, "eval", "generate", "--model", str(export), "--output", str(run / "samples.json"),
    )  # fmt: skip
    report = root / "report.html"
    pipeline.run("report", "report", report, *PYTHON, "eval", "report", "--run", str(run), "--output", str(report))
    return report


def newest_checkpoint(run: Path) -> Path:
    """The run's newest complete checkpoint."""
    return newest_checkpoints(run)[0]


def run(config: QuickstartConfig) -> str:
    """Walks through; returns what the newcomer reads last. Raises as `quickstart` does."""
    return next_steps(config, quickstart(config))


def next_steps(config: QuickstartConfig, report: Path) -> str:
    """What the newcomer reads last."""
    root = Path(config.output)
    return f"""
The report is {report}. Three things to try next:

  your own text         make quickstart ARGS='--source FILES_OR_DATA_SET --output runs/mine'
  a longer training     deepspeed pretrain/train.py --config {root}/train/config.yaml --output runs/longer --steps 3000
  any lm-eval task      python -m eval lm --model {root}/export --tasks lambada_openai,piqa    (these two need the hub)
"""
