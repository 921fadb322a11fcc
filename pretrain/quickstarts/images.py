"""`make vision`: from a few photographs to a model that is asked with example pairs, on two cores.

    sample-images -> pair-images -> tokenizer visual train -> prepare (per split and task) -> deepspeed train
        -> eval vision -> report

DeLVM (arXiv 2402.04841) at its smallest: every picture becomes 64 codes, an input and its answer become a pair, four
pairs of one task a sentence, and a language model continues sentences. The photographs come from installed packages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.quickstarts.commands_once import Pipeline
from pretrain.quickstarts.walkthrough import PYTHON, Walkthrough, option, train_command
from tokenizer.visual.base import VISUAL_FILE

TASKS: dict[str, tuple[str, ...]] = {
    "edges": (),
    "denoising": ("--pairs.corruption.noise", "[30, 60]"),
    "colourisation": (),
}
"""Task -> further options of its pairs, which are made from photographs alone. The noise is strong, because no answer
can be closer to the photograph than the codes are. configs/delvm/studies/quickstart_sets.yaml measures the same."""
SETS = "configs/delvm/studies/quickstart_sets.yaml"


@dataclass(frozen=True)
class VisionQuickstartConfig(Walkthrough):
    """What `make vision` may be asked to do differently."""

    output: str = "runs/vision"
    """Folder for everything it makes."""
    config: str = "configs/delvm/runs/quickstart.yaml"
    """Training configuration."""
    images: list[str] = field(default_factory=list)
    """Photographs (files, folders, .parquet files) in place of those that installed packages carry."""
    crops: int = 64
    """Crops of each photograph."""
    copies: int = 3
    """Augmented copies of each training pair."""
    codes: int = 512
    """Codes of the visual tokenizer."""
    queries: int = 48
    """Held-out pairs of each task that are answered in the evaluation."""

    COUNTS = ("steps", "ranks", "crops", "codes", "queries")


def quickstart_vision(config: VisionQuickstartConfig) -> Path:
    """Runs every step; returns the report's path. Raises StepFailed when a step failed."""
    root = Path(config.output)
    photographs, tokenizer, run = root / "photographs", root / "tokenizer", root / "train"
    pipeline = Pipeline(root)
    pipeline.run(
        "photographs", "crops of photographs, some photographs held out", photographs,
        *PYTHON, "data_pipeline", "sample-images", *option("images", config.images), "--crops", str(config.crops),
        "--output", str(photographs),
    )  # fmt: skip
    drawn = {task: str(root / "pairs" / f"{task}.parquet") for task in TASKS}
    for task, file in drawn.items():
        pipeline.run(
            f"images.{task}", f"images of {task} for the tokenizer", Path(file),
            *PYTHON, "data_pipeline", "pair-images", "--input", str(photographs / "train"), "--pairs.task", task,
            *TASKS[task], "--limit", "2000", "--output", file,
        )  # fmt: skip
    pipeline.run(
        "tokenizer", f"a visual tokenizer of {config.codes} codes, by k-means", tokenizer,
        *PYTHON, "tokenizer", "visual", "train", "--images", *drawn.values(), "--codes", str(config.codes),
        "--patches", "40000", "--output", str(tokenizer),
    )  # fmt: skip
    shards: dict[str, dict[str, str]] = {"train": {}, "valid": {}}
    for seed, (split, copies) in enumerate((("train", config.copies), ("valid", 0))):
        for task in TASKS:
            shards[split][task] = str(root / "shards" / f"{split}.{task}")
            pipeline.run(
                f"prepare.{split}.{task}", f"token shards of {split}.{task}", Path(shards[split][task]),
                *PYTHON, "data_pipeline", "prepare", "--input", str(photographs / split),
                "--tokenizer", str(tokenizer), "--pairs.task", task, *TASKS[task], "--pairs.copies", str(copies),
                "--pairs.seed", str(seed), "--output", shards[split][task],
            )  # fmt: skip
    codes = json.loads((tokenizer / VISUAL_FILE).read_text(encoding="utf-8"))["vocab_size"]  # some may coincide
    pipeline.run(
        "train", f"training on {config.ranks} ranks", run,
        *train_command(
            config, run, train=list(shards["train"].values()), valid=shards["valid"],
            model_overrides={"vocab_size": codes},
        ),
        continues=True,
    )  # fmt: skip
    pipeline.run(
        "vision", "visual prompting on the held-out photographs", run / "eval",
        *PYTHON, "eval", "vision", "--model", f"ours={run}", "--sets", SETS, "--define", f"photographs={photographs}",
        "--queries", str(config.queries), "--output", str(run / "eval"),
    )  # fmt: skip
    report = root / "report.html"
    pipeline.run("report", "report", report, *PYTHON, "eval", "report", "--run", str(run), "--output", str(report))
    return report


def run(config: VisionQuickstartConfig) -> str:
    """Walks through; returns what the newcomer reads last. Raises as `quickstart_vision` does."""
    return next_steps(config, quickstart_vision(config))


def next_steps(config: VisionQuickstartConfig, report: Path) -> str:
    """What the newcomer reads last."""
    root = Path(config.output)
    return f"""
The report is {report}. Three things to try next:

  your own photographs  make vision ARGS='--images MY_PHOTOGRAPHS/ --output runs/my-vision'
  a longer training     deepspeed pretrain/train.py --config {root}/train/config.yaml --output runs/longer --steps 4000
  the tokenizer alone   python -m tokenizer visual inspect --tokenizer {root}/tokenizer \\
                            --images {root}/photographs/valid --output {root}/tokenizer-check
"""
