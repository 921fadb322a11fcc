"""Promise 6, whole: every kind of bad input meets its message on the way from raw text to a trained model."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ShardError
from common.find_model import newest_checkpoints
from data_pipeline.__main__ import main as data_pipeline
from pretrain.checkpoints import checkpoint
from pretrain.command_line import parse
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.trainer import Outcome, train
from tests.pretrain.conftest import rows
from tokenizer.train import TrainConfig, train_tokenizer

BAD_LINES = {
    "broken JSON": b'{"text": "the line ends he',
    "invalid UTF-8": b'{"text": "caf\xe9"}',
    "empty document": b'{"text": ""}',
}


def test_every_kind_of_bad_input_is_named_and_loses_nothing(
    corpus: dict[str, Path],
    tiny_arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Documents: refused with reason, file and line; below the threshold the rest is kept and the count is exact.
    folder = corpus["train"].parents[1]
    good = (folder / "train.jsonl").read_bytes().splitlines()
    raw, shards = tmp_path / "raw.jsonl", tmp_path / "shards"
    raw.write_bytes(b"\n".join([*good, *BAD_LINES.values()]) + b"\n")
    command = ["prepare", "--input", str(raw), "--output", str(shards), "--tokenizer", str(folder / "tokenizer")]
    assert data_pipeline([*command, "--reject_threshold", "0.001"]) == 1
    refusal = capsys.readouterr().err
    for line, reason in enumerate(BAD_LINES, start=len(good) + 1):
        assert f"{reason}: 1 (raw.jsonl:{line}" in refusal
    assert data_pipeline(command) == 0
    meta = json.loads((shards / "meta.json").read_text())
    assert meta["documents"] == len(good)
    assert {reason: entry["count"] for reason, entry in meta["rejected"].items()} == dict.fromkeys(BAD_LINES, 1)

    def attempt(output: str = "run", **overrides: object) -> Outcome:
        overrides = {"task__train": json.dumps([str(shards)]), "steps": 4, "checkpoint__every": 2} | overrides
        return train(parse(tiny_arguments(tmp_path / output, **overrides))[0])

    # An unknown field of the configuration.
    with pytest.raises(ConfigurationError, match=r"unknown field 'optimizer\.lrr'; did you mean 'optimizer\.lr'"):
        attempt(optimizer__lrr=0.1)

    # A truncated shard.
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    data = next(damaged.glob("*.ds"))
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(ShardError, match=rf"{data.name}: truncated: expected \d+ bytes, found \d+; copy it again"):
        attempt(task__train=json.dumps([str(damaged)]))

    # A shard of another tokenizer.
    another = tmp_path / "another_tokenizer"
    train_tokenizer(TrainConfig(input=[str(folder / "train.jsonl")], vocab_size=370, output=str(another)))
    foreign = tmp_path / "foreign"
    foreign_command = ["prepare", "--input", str(folder / "train.jsonl"), "--output", str(foreign)]
    assert data_pipeline([*foreign_command, "--tokenizer", str(another)]) == 0
    with pytest.raises(ConfigurationError, match=r"different tokenizers cannot be mixed .*foreign: \w{12}"):
        attempt(task__train=json.dumps([str(shards), str(foreign)]))
    assert not newest_checkpoints(tmp_path / "run")

    # A full disk while saving: what is there stays.
    assert attempt() is Outcome.FINISHED
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "fsync", _full_disk)
        with pytest.raises(CheckpointError, match=r"No space left on device.*Earlier checkpoints are untouched"):
            attempt(steps=6)
    checkpoints = newest_checkpoints(tmp_path / "run")
    assert [path.name for path in checkpoints] == ["step_00000004", "step_00000002"]

    # A half-written checkpoint: passed over for the one before it.
    (checkpoints[0] / "meta.json").unlink()
    assert attempt(steps=6) is Outcome.FINISHED
    assert f"passing over {checkpoints[0]}" in caplog.text
    assert [row["step"] for row in rows(tmp_path / "run", "event") if row["event"] == "resume"][-1] == 2


def _full_disk(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))
