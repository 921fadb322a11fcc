"""Worker processes: Ctrl-C ends them without a word, even while they are still starting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from common.processes import WorkerContext, end_with_parent
if __name__ != "__main__":
    print("importing", flush=True)
    time.sleep(0.5)

def work(number):
    print("working", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    try:
        with ProcessPoolExecutor(1, WorkerContext(), end_with_parent) as pool:
            list(pool.map(work, [1]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("moment", ["importing", "working"])
def test_ctrl_c_is_answered_by_the_parent_alone(tmp_path: Path, moment: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert program.stdout is not None
    for line in program.stdout:
        if line.strip() == moment:
            break
    os.killpg(program.pid, signal.SIGINT)
    told, _ = program.communicate(timeout=50)
    assert told == "interrupted\n"
