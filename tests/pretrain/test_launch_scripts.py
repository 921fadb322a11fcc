"""configs/launch: every script is one; slurm.sh, run with stand-ins for Slurm's programs, saves when the time is up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pretrain.conftest import ROOT, environment, rows
from tests.pretrain.test_guards import toy

SCRIPTS = sorted((ROOT / "configs" / "launch").glob("*.sh"))
SECONDS = 600

SRUN = """#!/usr/bin/env bash
# As many tasks as the job has, on this machine.
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_STEP_ID=0 SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" > "$STEP"
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "$code"
"""
SCANCEL = f"""#!{sys.executable}
# Signals every process of the step, as slurmstepd does, and again.
import os, sys, time
from contextlib import suppress
import psutil
assert sys.argv[1:] == ["--signal=TERM", os.environ["SLURM_JOB_ID"]]
tasks = [psutil.Process(int(task)) for task in open(os.environ["STEP"]).read().split()]
processes = [process for task in tasks for process in (task, *task.children(recursive=True))]
for _ in range(2):
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    time.sleep(0.5)
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") echo 127.0.0.1; echo node-b ;;
    requeue*) echo "$2" > "$REQUEUED" ;;
esac
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script: Path):
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr


def test_the_job_asks_for_cores_memory_and_the_time_that_it_names():
    text = (ROOT / "configs" / "launch" / "slurm.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert int(asked["cpus-per-task"]) > 1 and asked["mem"] == "0"
    assert asked["signal"] == "B:USR1@" + re.findall(r"\bGRACE=(\d+)", text)[0]
    assert asked["ntasks-per-node"] == asked["gres"].removeprefix("gpu:")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
def test_a_job_whose_time_is_up_saves_and_goes_back_into_the_queue(tmp_path):
    for name, content in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    config, script, run, log = (tmp_path / name for name in ("config.yaml", "slurm.sh", "run", "log"))
    config.write_text("loader: {workers: 1}\n")
    text = (ROOT / "configs" / "launch" / "slurm.sh").read_text()
    script.write_text(re.sub(r"\bCONFIG=\S+", f"CONFIG={config}", text).replace("INTERFACE=eth0", "INTERFACE=lo"))
    requeued, words = tmp_path / "requeued", toy(run, "--checkpoint.every", "100000", steps=100_000)
    variables = environment(
        PATH=os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]),
        SLURM_JOB_ID="4711", SLURM_JOB_NODELIST="node-[a-b]", SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2",
        SLURM_CPUS_PER_TASK="1", STEP=str(tmp_path / "step"), REQUEUED=str(requeued),
    )  # fmt: skip
    with log.open("w") as file:
        job = subprocess.Popen(["bash", str(script), *words], cwd=ROOT, env=variables, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + SECONDS
        while not ((run / "metrics.jsonl").exists() and rows(run, "train")):
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(SECONDS) == 0, log.read_text()[-3000:]
    finally:
        job.kill()
    assert re.search(r"SIGTERM: saved, leaving", log.read_text())
    assert (run / "checkpoints" / "latest").read_text() == f"step_{rows(run, 'train')[-1]['step']:08d}"
    assert "exit code 0" in log.read_text() and requeued.read_text() == "4711\n"
