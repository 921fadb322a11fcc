"""Tasks that are not language keep the same promises: two ranks at ZeRO 0 to 3 train like one process.

One launch for all of them, because starting ranks takes longer than training these models.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.command_line import parse
from pretrain.trainer import train
from tests.data_pipeline.word_cases import write_lmdb
from tests.pretrain import test_clip4str
from tests.pretrain.conftest import deepspeed_command, launch, rows
from tests.pretrain.test_word_recognition import LABELS, SHAPE, arguments

ROOT = Path(__file__).resolve().parents[2]
STAGES = range(4)


def digits(output: Path, stage: int, micro_size: int) -> list[str]:
    return [
        *("--config", str(ROOT / "examples/digits.yaml"), "--output", str(output), "--steps", "12"),
        *("--telemetry.every", "1", "--telemetry.tensorboard", "false", "--telemetry.progress_bar", "false"),
        *("--checkpoint.every", "12", "--engine.zero_stage", str(stage), "--batch.micro_size", str(micro_size)),
    ]


def words(output: Path, stage: int, micro_size: int) -> list[str]:
    folder = output.parent / "words"
    if not folder.exists():
        write_lmdb(folder, LABELS)
        (output.parent / "shape.yaml").write_text(json.dumps(SHAPE))
    changes = {"engine__zero_stage": stage, "batch__micro_size": micro_size}
    return [str(word) for word in arguments(str(output.parent / "shape.yaml"), str(folder), output, **changes)]


def captioned_words(output: Path, stage: int, micro_size: int) -> list[str]:
    """CLIP4STR; under ZeRO-3 even its smallest parameters are partitioned."""
    folder = output.parent / "words"
    (output.parent / "clip4str.yaml").write_text(json.dumps(test_clip4str.SHAPE))
    engine = {"deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}} if stage == 3 else {}
    changes = {"engine": json.dumps({"zero_stage": stage, **engine}), "batch__micro_size": micro_size}
    return [
        str(w) for w in test_clip4str.arguments(str(output.parent / "clip4str.yaml"), str(folder), output, **changes)
    ]


TASKS = {"digits": (digits, 64, 16), "words": (words, 8, 2), "clip4str": (captioned_words, 8, 2)}
"""Command line, micro-batch of one process, micro-batch of each of two ranks."""


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_at_every_stage_train_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plans = []
    for name, (make, alone, shared) in TASKS.items():
        train(parse(make(tmp_path / name, 0, alone))[0])
        plans += [make(tmp_path / f"{name}{stage}", stage, shared) for stage in STAGES]
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    log = tmp_path / "log"
    command = deepspeed_command("tests/pretrain/train_several.py", str(tmp_path / "plans.json"))
    assert launch(command, log).wait(timeout=300) == 0, log.read_text()[-3000:]
    for name in TASKS:
        for kind in ("train", "valid"):
            expected = [row["loss"] for row in rows(tmp_path / name, kind)]
            assert len(expected) > 0
            for stage in STAGES:
                actual = [row["loss"] for row in rows(tmp_path / f"{name}{stage}", kind)]
                assert actual == pytest.approx(expected, rel=1e-4), f"{name} at stage {stage}"
