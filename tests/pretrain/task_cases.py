"""Every task that ships, small: what `test_every_task.py` sends through the promises. A new task is one more entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.tasks.visual_sentences import VisualSentenceTask
from tests.data_pipeline.word_cases import write_lmdb
from tests.pretrain import visual_cases
from tests.pretrain.conftest import ROOT, TINY
from tests.tokenizer.image_cases import as_png, draw_images, write_parquet

LABELS = ["Hello", "world", "Cafe9", "20262", "Itsme", "abcdefg", "deers", "river"]
WORD_SHAPE = {
    "width": 16, "encoder_layers": 1, "encoder_heads": 2, "decoder_heads": 2, "max_length": 8, "dropout": 0.0,
    "image_height": 16, "image_width": 32, "patch_height": 8, "patch_width": 8,
}  # fmt: skip
CLIP_SHAPE = {
    "width": 16, "decoder_heads": 2, "max_length": 8, "dropout": 0.0, "image_size": 16, "patch_size": 8,
    "vision_width": 16, "vision_layers": 1, "vision_heads": 2, "text_width": 8, "text_layers": 2, "text_heads": 2,
    "text_positions": 16, "frozen_text_layers": 1,
}  # fmt: skip
VISUAL_SHAPE = {"image_size": 16, "grid": 4, "stem": 2, "width": 8, "blocks": 1, "codes": 12, "code_dim": 4}
STEPS, EVERY = 8, 2


@dataclass(frozen=True)
class Materials:
    """What the cases are made from."""

    folder: Path
    """For files of their own."""
    corpus: dict[str, Path]
    """Token shards of made-up text, by split."""

    def write(self, name: str, content: Any) -> str:
        """A YAML file; returns its path."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(content))
        return str(path)


def language(materials: Materials) -> dict[str, Any]:
    return {
        "task": "pretrain.tasks.LanguageModelTask",
        "task.model": materials.write("language.yaml", TINY),
        "task.train": [str(materials.corpus["train"])],
        "task.valid": {"held_out": str(materials.corpus["valid"])},
        "task.sequence_length": 32,
    }


def words(materials: Materials) -> dict[str, Any]:
    store = materials.folder / "words"
    if not store.exists():
        write_lmdb(store, LABELS)
    return {
        "task": "pretrain.tasks.WordRecognitionTask",
        "task.model": materials.write("words.yaml", WORD_SHAPE),
        "task.train": [str(store)],
        "task.valid": {"held_out": str(store)},
        "task.charset": "36",
        "task.copies": 3,
    }


def captioned_words(materials: Materials) -> dict[str, Any]:
    """CLIP4STR on the words. Its captions jump between likely characters; at these rates no rounding moves them."""
    return {
        **words(materials),
        "task": "pretrain.tasks.Clip4StrTask",
        "task.model": materials.write("clip4str.yaml", CLIP_SHAPE),
        "task.charset": "62",
        "task.decoder_lr_factor": 1.0,
        "optimizer.lr": 0.001,
    }


def digits(materials: Materials) -> dict[str, Any]:
    return {"config": str(ROOT / "examples/digits.yaml")}


def sentences(materials: Materials) -> dict[str, Any]:
    """With a teacher, which every rank asks and no engine owns."""
    shards, teacher = materials.folder / "pairs", materials.folder / "teacher"
    shape = materials.write("sentences.yaml", visual_cases.SHAPE)
    if not shards.exists():
        tokenizer = visual_cases.make_tokenizer()
        visual_cases.write_pairs(shards, tokenizer)
        task = VisualSentenceTask(shape, [str(shards)], images_per_sentence=visual_cases.IMAGES)
        model = task.build_model(1)
        teacher.mkdir()
        task.save_pretrained(model, model.state_dict(), teacher)
    return {
        "task": "pretrain.tasks.VisualSentenceTask",
        "task.model": shape,
        "task.train": [str(shards)],
        "task.valid": {"held_out": str(shards)},
        "task.images_per_sentence": visual_cases.IMAGES,
        "task.passes": 2,
        "task.teacher": str(teacher),
    }


def images(materials: Materials) -> dict[str, Any]:
    """A codebook moves once per micro-batch of all ranks, so both ways of training must have one a step."""
    store = materials.folder / "images.parquet"
    if not store.exists():
        write_parquet(store, [as_png(image) for image in draw_images(20, 20)])
    return {
        "task": "pretrain.tasks.VisualTokenizerTask",
        # Dead codes are replaced by draws that depend on the ranks.
        "task.model": materials.write("visual.yaml", {**VISUAL_SHAPE, "dead_code_threshold": 0.0}),
        "task.train": [str(store)],
        "task.valid": {"held_out": str(store)},
        "task.copies": 3,
        "batch.micro_size": 4,
        "optimizer.lr": 0.003,
    }


CASES: dict[str, Callable[[Materials], dict[str, Any]]] = {
    "language": language,
    "sentences": sentences,
    "images": images,
    "words": words,
    "captioned_words": captioned_words,
    "digits": digits,
}
"""Settings of each task, besides those that all runs share."""


def arguments(case: str, materials: Materials, output: Path, **changes: Any) -> list[str]:
    """The command line of one tiny run."""
    own = CASES[case](materials)
    settings = {
        **{name: value for name, value in own.items() if name == "config"},  # first: what follows overrides the file
        "output": str(output),
        "steps": STEPS,
        "batch.size": 8,
        "batch.micro_size": 2,
        "optimizer.lr": 0.01,
        # At stage 3 even the smallest parameters are partitioned.
        "engine.deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
        "checkpoint.every": EVERY,
        "validation.every": STEPS // 2,
        "validation.samples": 8,
        "telemetry.every": 1,
        "telemetry.tensorboard": False,
        "telemetry.progress_bar": False,
        **own,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    return [word for name, text in texts.items() for word in (f"--{name}", text)]
