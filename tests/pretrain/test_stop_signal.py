"""Stop signals and launchers: one wish however often it is said, and ranks that notice whoever ends above them.

What real launchers do to real ranks is in test_faults.py.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from data_pipeline.worker_signals import STOP_SIGNALS
from pretrain import launchers, stop_signal
from pretrain.command_line import parse
from pretrain.launchers import Launcher, find_launcher
from pretrain.stop_signal import StopSignal
from pretrain.trainer import train
from tests.pretrain.conftest import ROOT, environment, rows
from tests.pretrain.test_guards import toy

HERE = os.getppid()
BAR = ["--telemetry.progress_bar", "true"]
"""Something to print in every step."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own for every test; those of before at its end."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*names: str) -> None:
    """To this thread: what is sent to the process another thread may take, and hand on when Python's own handlers are
    back, where SIGINT is the end of the worker that runs these tests."""
    for name in names:
        signal.raise_signal(signal.Signals[name])


def test_signals_that_follow_within_seconds_are_the_same_wish():
    with StopSignal() as stop:
        send("SIGTERM", "SIGTERM", "SIGINT", "SIGHUP", "SIGTERM")
        assert stop.received == "SIGTERM"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_comes_later_acts_at_once(monkeypatch):
    monkeypatch.setattr(stop_signal, "SAME_WISH", 0.0)
    with StopSignal() as stop:
        send("SIGINT")
        assert stop.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_rank_that_leaves_is_not_told_again():
    with StopSignal(Launcher("deepspeed", HERE)):
        send("SIGTERM")
    send("SIGTERM", "SIGINT")  # deepspeed tells its ranks one after the other: the others have saved with the first


def test_nohup_is_respected_except_under_torchrun_which_kills_who_does_not_leave():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignal(Launcher("deepspeed", HERE)) as stop:
        send("SIGHUP")
        assert stop.received is None
    with StopSignal(Launcher("torchrun", HERE)) as stop:
        send("SIGHUP")
        assert stop.received == "SIGHUP"


CHILD = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[2:]]).returncode)"
RANK = """
import time
from pretrain.launchers import find_launcher
launcher = find_launcher(launched=False)
print(launcher.name, launcher.gone, flush=True)
while launcher.gone is None:
    time.sleep(0.01)
print(launcher.gone, flush=True)
"""


@pytest.mark.parametrize("killed", ["front end", "launch.py"])
def test_ranks_notice_the_end_of_whoever_is_above_them(tmp_path, killed):
    for name, text in (("deepspeed", CHILD), ("launch.py", CHILD), ("rank.py", RANK)):
        (tmp_path / name).write_text(text)
    # The words that the real ones have: `python .../deepspeed`, `python -m deepspeed.launcher.launch`.
    words = ["deepspeed", "--", "launch.py", "deepspeed.launcher.launch", "rank.py"]
    front = subprocess.Popen([sys.executable, *words], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
    assert front.stdout is not None
    try:
        assert front.stdout.readline() == b"deepspeed None\n"
        (launch,) = psutil.Process(front.pid).children()
        victim = psutil.Process(front.pid) if killed == "front end" else launch
        victim.terminate()
        assert int(front.stdout.readline()) == victim.pid
    finally:
        front.kill()
        front.stdout.close()
        front.wait()


def test_a_process_that_nobody_started_as_a_rank_has_no_launcher():
    assert find_launcher(False, {}) is None
    alone = find_launcher(True, {})
    assert alone is not None and (alone.name, alone.process, alone.gone, alone.grace) == ("launcher", HERE, None, None)


@pytest.mark.parametrize(
    ("variables", "name", "grace", "remedy"),
    [
        ({"TORCHELASTIC_RUN_ID": "none"}, "torchrun", 30.0, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600"),
        ({"TORCHELASTIC_RUN_ID": "none", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}, "torchrun", 300.0, "=600"),
        ({"SLURM_STEP_ID": "0"}, "Slurm", 30.0, "--signal=B:USR1@600"),
        ({"SLURM_STEP_ID": "0", "TINYPI_GRACE_SECONDS": "300"}, "Slurm", 300.0, "--signal=B:USR1@600"),
    ],
)
def test_a_save_that_outlasts_the_launchers_patience_is_told_with_a_remedy(variables, name, grace, remedy, monkeypatch):
    monkeypatch.setattr(launchers, "_torchrun_listens", lambda: True)
    launcher = find_launcher(True, variables)
    assert launcher is not None and (launcher.name, launcher.grace) == (name, grace)
    assert launcher.too_short(grace) is None
    text = launcher.too_short(grace + 1)
    assert text is not None and f"{grace + 1:.0f} s" in text and remedy in text


def test_a_torchrun_that_does_not_know_the_variable_is_not_believed_to(monkeypatch):
    api = importlib.import_module("torch.distributed.launcher.api")
    knows = "shutdown_timeout" in inspect.signature(api.LaunchConfig).parameters
    assert launchers._torchrun_listens() == knows
    monkeypatch.setattr(launchers, "_torchrun_listens", lambda: False)
    launcher = find_launcher(True, {"TORCHELASTIC_RUN_ID": "none", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"})
    assert launcher is not None and launcher.grace == 30.0


def test_deepspeed_has_no_setting_so_the_remedy_is_another_way_to_stop():
    text = Launcher("deepspeed", HERE, grace=30.0).too_short(31.0)
    assert text is not None and f"kill {os.getpid()}" in text


def test_the_log_says_once_that_a_save_outlasts_the_launchers_patience(tmp_path):
    train(parse(toy(tmp_path, steps=6))[0], Launcher("torchrun", HERE, grace=0.0))
    events = [row for row in rows(tmp_path, "event") if row["event"] == "grace"]
    assert [row["step"] for row in events] == [2] and "torchrun kills its ranks 0 s after" in events[0]["detail"]


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_any_more_saves_when_it_is_stopped(tmp_path):
    """Ctrl-C on `... | tee log`: `tee` is gone at once."""
    words = toy(tmp_path, "--checkpoint.every", "100000", "--loader.workers", "1", *BAR, steps=100_000)
    job = subprocess.Popen(
        [sys.executable, "pretrain/train.py", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert job.stdout is not None
    try:
        while not ((tmp_path / "metrics.jsonl").exists() and rows(tmp_path, "train")):
            assert job.poll() is None
            time.sleep(0.1)
        job.stdout.close()
        job.send_signal(signal.SIGINT)
        assert job.wait(300) == 0
    finally:
        job.kill()
    last = rows(tmp_path, "train")[-1]["step"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"step_{last:08d}"
