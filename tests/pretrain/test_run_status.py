"""The status file, what is read from it, and the times of phases in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.__main__ import main
from pretrain.errors import ConfigurationError
from pretrain.monitoring.status_command import QUIET_SECONDS, StatusConfig, read, show
from pretrain.monitoring.status_file import RunStatus
from pretrain.ranks.stragglers import PHASES, PhaseTimes, Spread, StragglerWatch
from pretrain.ranks.world import Peer, World
from tests.pretrain.conftest import ROOT, rows
from tests.pretrain.test_guards import run, sample_of_step, toy


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A toy run of seven steps with one skipped."""
    folder = tmp_path_factory.mktemp("finished")
    run(toy(folder, poison=[sample_of_step(3)]))
    return folder


def change(run: Path, **fields: object) -> None:
    path = run / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_finished_run_shows_everything_at_a_glance(finished, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain", "status", str(finished)])
    assert main() == 0
    shown = capsys.readouterr().out
    for expected in (
        "finished",
        "step 7 of 7 (100.0%)",
        "rank 0 on ",
        "samples/s ",
        "waiting for data",
        "forward ",
        "validation  loss ",
        "step_00000007, ",
        "step 4: skip: non-finite gradients in batch 3",
    ):
        assert expected in shown
    row = rows(finished, "train")[-1]
    assert f"loss {row['loss']:.4g}" in shown


def test_a_killed_run_and_a_silent_one_are_told_from_a_running_one(tmp_path):
    status = RunStatus(tmp_path, total_steps=100, ranks=2, enabled=True)
    status.update(urgent=True, phase="step", step=7)
    assert read(tmp_path)["state"] == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    change(tmp_path, process=gone.pid)
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    assert read(tmp_path)["state"] == "killed"  # a zombie by now
    gone.wait()
    assert read(tmp_path)["state"] == "killed" and f"process {gone.pid} is gone" in read(tmp_path)["detail"]
    change(tmp_path, process=os.getpid(), written=time.time() - QUIET_SECONDS - 1)
    assert read(tmp_path)["state"] == "silent"
    change(tmp_path, host="elsewhere", process=gone.pid, written=time.time())
    assert read(tmp_path)["state"] == "running"


def test_watching_ends_with_the_run(tmp_path):
    status = RunStatus(tmp_path, total_steps=9, ranks=1, enabled=True)
    status.update(urgent=True, step=3)
    shown = show(StatusConfig(str(tmp_path), watch=True, seconds=0.01))
    assert "running" in next(shown) and "step 3 of 9" in next(shown)
    status.end("failed", "disk full")
    assert [text.splitlines()[0] for text in shown] == [f"{tmp_path}: failed (disk full)"]


def test_a_run_that_fails_says_so_in_its_status(tmp_path):
    with pytest.raises(RuntimeError):
        run(toy(tmp_path, "--guards.max_consecutive_skips", "1", poison=[sample_of_step(0)]))
    status = read(tmp_path)
    assert status["state"] == "failed" and "before the first checkpoint" in status["detail"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"format": 1}', '{"written": "yesterday"}'])
def test_what_is_no_status_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"status\.json.*: not "):
        read(tmp_path)


def test_only_the_first_of_many_quick_changes_is_written_and_a_full_disk_is_no_error(tmp_path):
    status = RunStatus(tmp_path, total_steps=9, ranks=1, enabled=True)
    for step in range(5):
        status.update(step=step)
    assert read(tmp_path)["step"] == 0
    (tmp_path / "status.json").unlink()
    (tmp_path / "status.json.tmp").mkdir()  # cannot be written to
    status.end("finished")
    assert not (tmp_path / "status.json").exists()


def test_phases_are_told_apart_and_averaged_over_steps():
    times = PhaseTimes(torch.device("cpu"))
    for _ in range(2):
        with times.during("forward"):
            time.sleep(0.02)
        times.step(waited=0.5)
    read_now = times.read(World.alone("cpu"))
    assert read_now["data"] == Spread(0.5, 0.5, 0)
    assert 0.02 <= read_now["forward"].median < 0.2 and read_now["update"].slowest == 0
    assert times.read(World.alone("cpu"))["data"].slowest == 0


def spreads(forward: Spread) -> dict[str, Spread]:
    return {phase: forward if phase == "forward" else Spread(0.2, 0.2, 0) for phase in PHASES}


def test_a_straggler_is_named_after_three_readings_and_twenty_seconds_and_once():
    world = World(0, 4, 0, torch.device("cpu"), None, tuple(Peer(f"node-{n}", "") for n in range(4)))
    watch = StragglerWatch(ratio=1.5)
    slow, fine, other = Spread(0.4, 1.0, 3), Spread(0.4, 0.5, 3), Spread(0.4, 1.0, 1)
    readings = [
        (slow, 0),
        (slow, 30),
        (fine, 60),
        (slow, 70),
        (slow, 75),
        (slow, 80),
        (slow, 90),
        (slow, 99),
        (other, 99),
    ]
    said = [watch.look(spreads(forward), world, now) for forward, now in readings]
    assert [bool(text) for text in said] == [False] * 6 + [True, False, False]
    assert said[6].startswith("host node-3 (rank 3) takes 1 s a step for forward, the median rank 0.4 s")
    tiny = {
        phase: Spread(0.001 if phase == "forward" else 1.0, 0.01 if phase == "forward" else 1.0, 2) for phase in PHASES
    }
    assert not any(
        watch.look(tiny, world, 30 * number) for number in range(5)
    )  # ten times as slow, in what costs nothing


def test_of_two_ranks_the_faster_is_the_usual_one():
    world = World(0, 2, 0, torch.device("cpu"))
    times = PhaseTimes(torch.device("cpu"))
    times.step(waited=0.1)
    summed = np.array([[0.1, 0, 0, 0], [0.7, 0, 0, 0]]).flatten().tolist()
    object.__setattr__(world, "sum", lambda values: summed)
    assert times.read(world)["data"] == Spread(0.1, 0.7, 1)


def test_status_does_not_wait_for_torch():
    look = "import sys; sys.argv = ['pretrain', 'status', 'nowhere']; from pretrain.__main__ import main; "
    program = look + "assert main() == 2; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and "not found" in done.stderr
