"""Checkpoints: complete or absent, checked before use, refused when they belong to something else."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.find_model import newest_checkpoints
from pretrain.checkpoints import checkpoint
from pretrain.checkpoints.checkpoint import Checkpoints, check_files
from pretrain.checkpoints.checksums import seal
from pretrain.checkpoints.whole_state import write_whole_state
from pretrain.command_line import parse
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.trainer import Outcome, Trainer, train
from tests.pretrain.conftest import rows
from tests.pretrain.test_guards import final_weights, run, toy


def names(output: Path) -> list[str]:
    return [path.name for path in newest_checkpoints(output)]


def test_keeps_the_newest_and_points_at_the_last(tmp_path):
    run(toy(tmp_path))
    assert names(tmp_path) == ["step_00000007", "step_00000006"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000007"
    for path in newest_checkpoints(tmp_path):
        assert check_files(path) is None


def test_a_second_call_after_the_end_trains_nothing(tmp_path):
    run(toy(tmp_path))
    before = (tmp_path / "checkpoints" / "step_00000007" / "meta.json").stat().st_mtime_ns
    assert run(toy(tmp_path)) is Outcome.FINISHED
    assert (tmp_path / "checkpoints" / "step_00000007" / "meta.json").stat().st_mtime_ns == before
    assert len(rows(tmp_path, "train")) == 7


@pytest.mark.parametrize("damage", ["truncated", "missing file", "no meta", "another position", "flipped byte"])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path, caplog, damage):
    run(toy(tmp_path))
    newest = tmp_path / "checkpoints" / "step_00000007"
    weights = newest / "model.safetensors"
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "missing file":
        weights.unlink()
    elif damage == "no meta":
        (newest / "meta.json").unlink()
    elif damage == "another position":
        meta = (newest / "meta.json").read_text()
        (newest / "meta.json").write_text(meta.replace('"data_step": 7', '"data_step": 6'))
        assert (newest / "meta.json").read_text() != meta
    else:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(toy(tmp_path)) is Outcome.FINISHED
    assert "passing over" in caplog.text and str(newest) in caplog.text
    assert [row["step"] for row in rows(tmp_path, "event") if row["event"] == "resume"] == [6]
    assert check_files(newest) is None and weights.read_bytes() == content


def test_with_every_checkpoint_damaged_nothing_is_started_over(tmp_path):
    run(toy(tmp_path))
    for path in newest_checkpoints(tmp_path):
        (path / "model.safetensors").write_bytes(b"junk")
    log = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"none of its 2 checkpoints is complete.*checkpoint\.resume false"):
        run(toy(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == log and len(names(tmp_path)) == 2


def test_fewer_steps_than_the_run_has_done_are_refused(tmp_path):
    run(toy(tmp_path))
    with pytest.raises(ConfigurationError, match=r"steps is 4, but .* is at step 7 already"):
        run(toy(tmp_path, steps=4))


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path):
    run(toy(tmp_path, steps=7))
    leftover = tmp_path / "checkpoints" / "step_00000008.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / "step_00000007" / "meta.json").unlink()
    run(toy(tmp_path))
    assert not leftover.exists() and names(tmp_path)[0] == "step_00000007"


def test_a_full_disk_is_reported_and_harms_nothing(tmp_path, monkeypatch):
    run(toy(tmp_path))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*Earlier checkpoints are untouched"):
        run(toy(tmp_path, steps=9))
    assert names(tmp_path)[0] == "step_00000007" and not list((tmp_path / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--task.size", "65"], r"(?s)other data or another model.*64.*65"),
        (["--seed", "4"], r"(?s)other data or another model.*seed"),
        (
            ["--engine.zero_stage", "2", "--optimizer.name", "muon"],
            r"the optimizer kept exp_avg, .*set optimizer.name adamw, as then",
        ),
        (["--optimizer.name", "muon"], r"the optimizer kept exp_avg, .*set optimizer.name adamw, as then"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path, change, message):
    run(toy(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        run([*toy(tmp_path, steps=9), *change])


@pytest.mark.parametrize(("stage", "other"), [(0, 1), (1, 0), (3, 0)])
def test_what_the_configuration_says_of_the_optimizer_now_counts_at_the_same_stage_too(tmp_path, stage, other):
    """At another stage states are put together anew, without what the files say of momenta, betas and decay.

    The decay alone takes a tenth of a matrix away in each step; Muon's products in bf16 differ by 2^-8 of 0.02.
    """
    words = ["--optimizer.name", "muon", "--schedule.name", "constant", "--engine.precision", "fp32"]
    now = ["--optimizer.muon_momentum", "0.5", "--optimizer.weight_decay", "5", "--optimizer.betas", "[0.2, 0.3]"]
    run([*toy(tmp_path / "before", *words, steps=4), "--engine.zero_stage", str(stage)])
    found = []
    for number, resumed in enumerate((stage, other)):
        output = shutil.copytree(tmp_path / "before", tmp_path / str(number))
        run([*toy(output, *words, *now, steps=6), "--engine.zero_stage", str(resumed)])
        found.append(final_weights(output))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=0, atol=5e-4)


def test_another_stage_goes_on_and_what_was_converted_for_it_goes_with_the_next_checkpoint(tmp_path):
    run(toy(tmp_path))
    folder = tmp_path / "checkpoints"
    (folder / "whole_00000007.tmp").mkdir()  # as a kill in the midst of converting leaves it
    run([*toy(tmp_path, steps=9), "--engine.zero_stage", "2"])
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 10))
    assert not list(folder.glob("whole_*"))


def test_damaged_conversions_are_made_anew_and_foreign_files_named(tmp_path, monkeypatch):
    run(toy(tmp_path))
    folder = tmp_path / "checkpoints"
    monkeypatch.setattr(Checkpoints, "_prune", lambda self: None)
    run([*toy(tmp_path, steps=8), "--engine.zero_stage", "2"])
    (whole,) = folder.glob("whole_*")
    (shard,) = whole.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])
    shutil.rmtree(folder / "step_00000008")
    run([*toy(tmp_path, steps=8), "--engine.zero_stage", "0"])
    assert check_files(whole) is None
    with pytest.raises(CheckpointError, match=r"not what ZeRO stage 3 writes on 1 ranks"):
        write_whole_state(folder / "step_00000007" / "engine", 3, 1, [], tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"there is no \*zero_pp_rank_1"):
        write_whole_state(folder / "step_00000007" / "engine", 1, 2, [], tmp_path / "whole")


def test_resume_false_starts_over(tmp_path):
    run(toy(tmp_path))
    run([*toy(tmp_path), "--task.size", "65", "--checkpoint.resume", "false"])
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 8))
    meta = json.loads((tmp_path / "checkpoints" / "step_00000007" / "meta.json").read_text())
    assert meta["identity"]["order"]["sizes"] == [65]


def test_a_batch_that_the_ranks_cannot_share_names_sizes_that_work(tmp_path):
    with pytest.raises(ValueError, match="possible sizes near it: 8, 12"):
        Trainer(parse([*toy(tmp_path), "--batch.size", "10"])[0])


def test_metrics_cut_off_in_the_middle_of_a_line_are_mended(tmp_path):
    run(toy(tmp_path, steps=4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    train(parse(toy(tmp_path, steps=5))[0])
    assert [row["step"] for row in rows(tmp_path, "train")] == [1, 2, 3, 4, 5]


class Payload:
    """Unpickling it without limits makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def plant(checkpoint: Path, pattern: str, mark: Path) -> Path:
    """Puts a payload into an engine file of a checkpoint, beside what was there, and makes the checksums right."""
    (file,) = (checkpoint / "engine").glob(pattern)
    torch.save(torch.load(file, weights_only=False) | {"payload": Payload(mark)}, file)
    meta = json.loads((checkpoint / "meta.json").read_text())
    seal(checkpoint, **{name: value for name, value in meta.items() if "sha256" not in name})
    assert check_files(checkpoint) is None
    torch.load(file, weights_only=False)
    assert mark.is_file()  # it is a payload that works
    mark.unlink()
    return file


@pytest.mark.parametrize("pattern", ["*model_states.pt", "*optim_states.pt"])
@pytest.mark.parametrize("stage", ["1", "2"], ids=["same layout", "converted"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, pattern, stage):
    output, mark = tmp_path / "run", tmp_path / "the payload ran"
    run([*toy(output, steps=4), "--engine.zero_stage", "1"])
    file = plant(output / "checkpoints" / "step_00000004", pattern, mark)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(file))}: its pickle names .*pathlib.*nothing of it"):
        run([*toy(output, steps=6), "--engine.zero_stage", stage])
    assert not mark.exists()


def test_the_engines_own_reader_refuses_it_as_well(tmp_path, monkeypatch):
    mark = tmp_path / "the payload ran"
    monkeypatch.setattr(checkpoint, "check_engine_files", lambda paths: None)  # as if replaced after the check
    run(toy(tmp_path / "run", steps=4))
    plant(tmp_path / "run" / "checkpoints" / "step_00000004", "*model_states.pt", mark)
    with pytest.raises(CheckpointError, match="its pickle names"):
        run(toy(tmp_path / "run", steps=6))
    assert not mark.exists()


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_every_stage_resumes_through_the_contained_reader(tmp_path, stage):
    run([*toy(tmp_path, steps=4), "--engine.zero_stage", stage])
    run([*toy(tmp_path, steps=6), "--engine.zero_stage", stage])
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 7))
    assert [row["event"] for row in rows(tmp_path, "event")] == ["resume"]


def test_a_reader_that_unpickles_without_limits_is_refused(tmp_path):
    run(toy(tmp_path, steps=4))
    with pytest.raises(CheckpointError, match=r"engine\.deepspeed chooses .* universal checkpoints"):
        run([*toy(tmp_path, steps=6), "--engine.deepspeed", '{"checkpoint": {"load_universal": true}}'])
