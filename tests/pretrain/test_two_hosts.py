"""Two hosts, really launched with the scripts of configs/launch: one is cut off, named, and the run continues."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pretrain.conftest import rows
from tests.pretrain.test_guards import toy
from tests.pretrain.two_hosts import NODES, TwoHosts, missing, two_hosts

SILENCE, EVERY, SECONDS = 8, 20, 900


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    if reason := missing():
        pytest.skip(reason)
    with two_hosts(tmp_path) as made:
        yield made


def arguments(run: Path, steps: int, stage: int) -> list[str]:
    sizes = ["--checkpoint.every", str(EVERY), "--engine.zero_stage", str(stage), "--telemetry.peak_tflops", "1"]
    return toy(run, *sizes, steps=steps)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


def exit_code(process: subprocess.Popen, log: Path) -> int:
    """Of a launcher; one that outlives its time is killed."""
    try:
        return process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running: {log.read_text()[-4000:]}") from None


def on_both(hosts: TwoHosts, script: str, words: list[str], folder: Path) -> None:
    """Starts a script with the node's number on each host, and sees both end well."""
    logs = [folder / f"{script}.{node}.log" for node in NODES]
    processes = [
        hosts.launch(node, [script, str(number), *words], log)
        for number, (node, log) in enumerate(zip(NODES, logs, strict=True))
    ]
    for process, log in zip(processes, logs, strict=True):
        assert exit_code(process, log) == 0, log.read_text()[-4000:]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
def test_a_host_that_is_cut_off_is_named_and_the_run_continues(hosts, tmp_path):
    run, log, config = tmp_path / "run", tmp_path / "ssh.log", tmp_path / "config.yaml"
    config.write_text(f"distributed: {{silence_seconds: {SILENCE}}}\n")
    words = [hosts.edited("ssh.sh", config), *arguments(run, 100_000, stage=1)]
    process = hosts.launch("node-a", words, log)
    wait_until(lambda: (run / "checkpoints" / f"step_{2 * EVERY:08d}").exists(), process, log)
    hosts.cable("node-b", "down")
    pulled = time.monotonic()
    assert exit_code(process, log) > 0
    assert time.monotonic() - pulled < SILENCE + 60

    messages = {node: (run / "stacks" / f"rank_0000{rank}.txt").read_text() for rank, node in enumerate(NODES)}
    assert "no sign of life from host node-b (rank 1)" in log.read_text()
    assert "no sign of life from host node-b (rank 1)" in messages["node-a"]
    assert "no sign of life from host node-a (rank 0)" in messages["node-b"]
    assert all("Thread" in text and "trainer.py" in text for text in messages.values())
    deadline = time.monotonic() + 60
    while any(hosts.training(node) for node in NODES):
        assert time.monotonic() < deadline, "training processes outlived their run"
        time.sleep(0.2)

    hosts.cable("node-b", "up")
    reached = rows(run, "train")[-1]["step"]
    on_both(hosts, hosts.edited("no_ssh.sh", config), arguments(run, reached + 5, stage=1), tmp_path)
    (resumed,) = [row["step"] for row in rows(run, "event") if row["event"] == "resume"]
    assert resumed >= 2 * EVERY and reached - resumed <= EVERY
    assert [row["step"] for row in rows(run, "train")] == list(range(1, reached + 6))

    other = tmp_path / "stage3"
    on_both(hosts, hosts.edited("torchrun.sh", config), arguments(other, 6, stage=3), tmp_path)
    assert (other / "checkpoints" / "latest").read_text() == "step_00000006"
