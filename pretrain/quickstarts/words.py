"""`make ocr`: from a list of words to a recogniser that is asked words it has never seen, on two cores.

    sample -> sample-words -> synth-words (twice) -> deepspeed train -> eval ocr -> report

Nothing is downloaded: the words are those of the quick start's English text, fonts come from the system and from
matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pretrain.errors import ConfigurationError
from pretrain.quickstarts.commands_once import Pipeline
from pretrain.quickstarts.walkthrough import PYTHON, Walkthrough, train_command

CHARSET = "36"
"""Digits and small letters; configs/ocr/runs/quickstart.yaml trains on the same."""
LOOK = (
    "--digits", "0.3", "--look.light", "0.1", "--look.rotation", "3", "--look.perspective", "0.06", "--look.curve", "0",
    "--look.blur", "0.8", "--look.noise", "6", "--look.shadow", "0", "--look.photograph", "0", "--look.jpeg", "0.2",
)  # fmt: skip
"""Clean enough to be read after ten minutes of learning: mostly dark letters, on plain colours and gradients."""


@dataclass(frozen=True)
class OcrQuickstartConfig(Walkthrough):
    """What `make ocr` may be asked to do differently."""

    output: str = "runs/ocr"
    """Folder for everything it makes."""
    config: str = "configs/ocr/runs/quickstart.yaml"
    """Training configuration."""
    words: list[str] = field(default_factory=list)
    """Word lists or texts in place of the words of the built-in English text."""
    images: int = 48_000
    """Word images to train on."""
    valid_images: int = 1_000
    """Images of held-out words to measure on."""
    longest: int = 5
    """Characters of the longest word."""

    COUNTS = ("steps", "ranks", "images", "valid_images", "longest")


def quickstart_ocr(config: OcrQuickstartConfig) -> Path:
    """Runs every step; returns the report's path.

    Raises:
        StepFailed: a step failed.
        ConfigurationError: the built-in corpus has no English text.
    """
    root = Path(config.output)
    corpus, words, run = root / "corpus", root / "words", root / "train"
    pipeline = Pipeline(root)
    texts = list(config.words)
    if not texts:
        pipeline.run(
            "sample", "a real text to take words from", corpus,
            *PYTHON, "data_pipeline", "sample", "--output", str(corpus),
        )  # fmt: skip
        texts = [str(corpus / f"{split}.en.jsonl") for split in ("train", "valid")]
        if missing := [text for text in texts if not Path(text).is_file()]:
            raise ConfigurationError(f"{missing[0]} is not there; give --words")
    pipeline.run(
        "words", "its words, every tenth one held out", words,
        *PYTHON, "data_pipeline", "sample-words", "--words", *texts, "--charset", CHARSET,
        "--longest", str(config.longest), "--output", str(words),
    )  # fmt: skip
    stores = {}
    for seed, (split, size) in enumerate((("train", config.images), ("valid", config.valid_images))):
        stores[split] = root / "images" / split
        pipeline.run(
            f"draw.{split}", f"{size:,} images of {'held-out words' if split == 'valid' else 'words'}", stores[split],
            *PYTHON, "data_pipeline", "synth-words", "--words", str(words / f"{split}.txt"), "--size", str(size),
            "--charset", CHARSET, "--longest", str(config.longest), "--seed", str(seed), *LOOK,
            "--output", str(stores[split]),
        )  # fmt: skip
    pipeline.run(
        "train", f"training on {config.ranks} ranks", run,
        *train_command(config, run, train=[str(stores["train"])], valid={"unseen": str(stores["valid"])}),
        continues=True,
    )  # fmt: skip
    pipeline.run(
        "ocr", "reading the held-out words", run / "eval",
        *PYTHON, "eval", "ocr", "--model", f"ours={run}", "--data", str(stores["valid"]), "--charset", CHARSET,
        "--output", str(run / "eval"),
    )  # fmt: skip
    report = root / "report.html"
    pipeline.run("report", "report", report, *PYTHON, "eval", "report", "--run", str(run), "--output", str(report))
    return report


def run(config: OcrQuickstartConfig) -> str:
    """Walks through; returns what the newcomer reads last. Raises as `quickstart_ocr` does."""
    return next_steps(config, quickstart_ocr(config))


def next_steps(config: OcrQuickstartConfig, report: Path) -> str:
    """What the newcomer reads last."""
    root = Path(config.output)
    return f"""
The report is {report}. Three things to try next:

  your own words        make ocr ARGS='--words MY_WORDS.txt --output runs/my-ocr'
  a longer training     deepspeed pretrain/train.py --config {root}/train/config.yaml --output runs/longer --steps 6000
  an ONNX recogniser    pip install rapidocr-onnxruntime, then
                        python -m eval ocr --model ours={root}/train rapidocr --data {root}/images/valid
"""
