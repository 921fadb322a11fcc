"""A real two-rank job that can be watched and hurt: its processes, its steps, its log."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.pretrain.conftest import deepspeed_command, launch, rank_processes, torchrun_command

VICTIM = "tests/faults/victim.py"
RANKS = 2
LAUNCHERS = {"deepspeed": deepspeed_command, "torchrun": torchrun_command}


class Hang(AssertionError):
    """Something that should have happened did not within its limit."""


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Polls; raises Hang when the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Hang(f"{what}: not within {seconds:g} s")
        time.sleep(0.03)


class Job:
    """One launch of a run.

    Args:
        run: run directory.
        words: command line of `train.py`.
        log: what the launcher and all ranks print.
        wounds: see `tests/faults/victim.py`.
        launcher: a key of LAUNCHERS.
    """

    def __init__(
        self, run: Path, words: Sequence[str], log: Path, wounds: dict[str, Any], launcher: str = "deepspeed"
    ) -> None:
        self.run, self.words, self.log = run, words, log
        self._resumes_before, self._fresh = len(self._resumed()), not (run / "checkpoints" / "latest").exists()
        self.process = launch(LAUNCHERS[launcher](VICTIM, *words, ranks=RANKS), log, WOUNDS=json.dumps(wounds))
        self._all: dict[int, psutil.Process] = {}

    @property
    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Of metrics.jsonl, the last one first. What a kill or a full disk has cut off is no row."""
        lines: list[str] = []
        with suppress(FileNotFoundError):
            lines = (self.run / "metrics.jsonl").read_text().splitlines()
        for line in reversed(lines):
            with suppress(ValueError):
                yield json.loads(line)

    @property
    def step(self) -> int:
        """The last step that the run's log tells of; 0 before the first."""
        return next((int(row["step"]) for row in self._rows() if row["kind"] == "train"), 0)

    def begun(self) -> bool:
        """Whether this launch trains: what it found it has taken up."""
        return self._fresh or len(self._resumed()) > self._resumes_before

    @property
    def taken_up(self) -> int:
        """The step at which this launch began; what a rollback resumes comes later."""
        return self._resumed()[self._resumes_before]

    def _resumed(self) -> list[int]:
        """Steps at which launches and rollbacks went on."""
        return [int(row["step"]) for row in self._rows() if row.get("event") == "resume"][::-1]

    def ranks(self) -> list[psutil.Process]:
        """The training processes, by rank."""
        self.remember()
        with suppress(psutil.Error):
            return rank_processes(self.process.pid)
        return []

    def workers(self) -> list[psutil.Process]:
        """The loaders' worker processes of all ranks."""
        return [worker for rank in self.ranks() for worker in self._children(rank.pid)]

    def launchers(self) -> list[psutil.Process]:
        """The launcher's own processes, the outer one first."""
        trained = {process.pid for process in [*self.ranks(), *self.workers()]}
        inner = [process for process in self._children(self.process.pid) if process.pid not in trained]
        return [psutil.Process(self.process.pid), *inner]

    def _children(self, process: int) -> list[psutil.Process]:
        with suppress(psutil.Error):
            children = psutil.Process(process).children(recursive=True)
            self._all.update({child.pid: child for child in children})
            return children
        return []

    def remember(self) -> None:
        """Notes all processes there are, also those that an injury is about to orphan."""
        self._children(self.process.pid)

    def alive(self) -> list[psutil.Process]:
        """What is left of the launch."""
        known = [*self._all.values()]
        if self.process.poll() is None:
            known.append(psutil.Process(self.process.pid))
        return [p for p in known if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def wait_for_step(self, step: int, seconds: float) -> None:
        """Returns when the run has done `step` steps.

        Raises:
            Hang: it has not within `seconds`.
            AssertionError: the launch ended before that.
        """

        def there() -> bool:
            assert self.process.poll() is None or self.step >= step, f"ended before step {step}: {self.text[-3000:]}"
            return self.begun() and self.step >= step

        wait_until(there, seconds, f"step {step}")

    def wait_for_end(self, seconds: float) -> float:
        """Returns when no process is left, after how many seconds.

        Raises:
            Hang: some are left after `seconds`; they are killed, and their stacks are in the message.
        """
        began = time.monotonic()
        try:
            wait_until(lambda: self.process.poll() is not None and not self.alive(), seconds, "the end of the job")
        except Hang as hang:
            for rank in self.ranks():
                rank.send_signal(signal.SIGUSR2)
            time.sleep(2)
            self.kill()
            raise Hang(f"{hang}: {self.text[-6000:]}") from None
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILLs everything."""
        self.remember()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in self.alive():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()
        wait_until(lambda: not self.alive(), 30, "killed processes to go")
