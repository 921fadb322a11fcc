"""Two hosts, really launched: trained over ssh, one cut off in the middle, named, and continued without ssh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pretrain.conftest import rows
from tests.pretrain.test_guards import toy
from tests.pretrain.two_hosts import NODES, TwoHosts, missing, two_hosts

SILENCE, EVERY, SECONDS = 4, 20, 300
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    if reason := missing():
        pytest.skip(reason)
    with two_hosts(tmp_path) as made:
        yield made


def launcher(hosts: TwoHosts, *extra: str) -> list[str]:
    address = ["--master_addr", NODES["node-a"], "--master_port", "29511"]
    return [DEEPSPEED, "--hostfile", str(hosts.hostfile), *address, "--log_level", "error", *extra]


def arguments(run: Path, steps: int, stage: int) -> list[str]:
    sizes = ["--batch.size", "8", "--checkpoint.every", str(EVERY), "--engine.zero_stage", str(stage)]
    return [*toy(run, *sizes, "--distributed.silence_seconds", str(SILENCE), steps=steps)]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


def finish(processes: list[subprocess.Popen], log: Path) -> list[int]:
    """Exit codes; whatever outlives its time is killed."""
    try:
        return [process.wait(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                print(log.read_text()[-4000:])


@pytest.mark.slow
@pytest.mark.distributed
def test_a_host_that_is_cut_off_is_named_and_the_run_continues(hosts, tmp_path):
    whole, cut, log = tmp_path / "stage3", tmp_path / "stage1", tmp_path / "cut.log"
    plans = tmp_path / "plans.json"
    plans.write_text(json.dumps([arguments(whole, 6, stage=3), arguments(cut, 100_000, stage=1)]))
    process = hosts.launch("node-a", launcher(hosts, "tests/pretrain/train_several.py", str(plans)), log)
    try:
        wait_until(lambda: (cut / "checkpoints" / f"step_{2 * EVERY:08d}").exists(), process, log)
        assert (whole / "checkpoints" / "latest").read_text() == "step_00000006"
        hosts.cable("node-b", "down")
        pulled = time.monotonic()
    finally:
        (code,) = finish([process], log) if process.poll() is None else (process.poll(),)
    assert code and time.monotonic() - pulled < SILENCE + 60
    messages = {node: (cut / "stacks" / f"rank_0000{rank}.txt").read_text() for rank, node in enumerate(NODES)}
    assert "no sign of life from host node-b (rank 1)" in log.read_text()
    assert "no sign of life from host node-b (rank 1)" in messages["node-a"]
    assert "no sign of life from host node-a (rank 0)" in messages["node-b"]
    assert all("Thread" in text and "trainer.py" in text for text in messages.values())
    assert not any(hosts.training(node) for node in NODES)

    hosts.cable("node-b", "up")
    reached = rows(cut, "train")[-1]["step"]
    words = ["pretrain/train.py", *arguments(cut, reached + 5, stage=1)]
    logs = [tmp_path / f"{node}.log" for node in NODES]
    processes = [
        hosts.launch(node, launcher(hosts, "--no_ssh", "--node_rank", str(number), *words), logs[number])
        for number, node in enumerate(NODES)
    ]
    assert finish(processes, logs[0]) == [0, 0], "".join(path.read_text()[-3000:] for path in logs)
    (resumed,) = [row["step"] for row in rows(cut, "event") if row["event"] == "resume"]
    assert resumed >= 2 * EVERY and reached - resumed <= EVERY
    assert [row["step"] for row in rows(cut, "train")] == list(range(1, reached + 6))
