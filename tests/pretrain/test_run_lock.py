"""Two jobs never train in one folder, and a dead one does not keep it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pretrain.checkpoints.run_lock import RunLock
from pretrain.errors import ConfigurationError
from tests.pretrain.conftest import ROOT, environment
from tests.pretrain.test_guards import toy

HOLD = """
import os, sys, time
from pathlib import Path
from pretrain.checkpoints.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(60)      # a worker process that outlives the one that holds the folder
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, 9)


def test_a_second_job_is_refused_with_the_first_ones_name_and_changes_nothing(holder, tmp_path):
    (tmp_path / "config.yaml").write_text("the first job's")
    words = [sys.executable, "pretrain/train.py", *toy(tmp_path)]
    second = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert second.returncode == 1
    assert f"another job trains there (host {os.uname().nodename}, process {holder.pid}, since 20" in second.stderr
    assert (tmp_path / "config.yaml").read_text() == "the first job's"


def test_a_killed_jobs_folder_is_free_at_once_although_its_workers_live_on(holder, tmp_path):
    with pytest.raises(ConfigurationError, match="another job trains there"):
        RunLock(tmp_path)
    holder.kill()
    holder.wait()
    began = time.monotonic()
    RunLock(tmp_path).release()
    assert time.monotonic() - began < 5
