"""`StopSignal`: whoever wants a run to end is heard once, and the run saves before it ends.

    SIGTERM, SIGINT, SIGHUP, the launcher gone     the step is finished, a checkpoint saved, exit code 0
    the same again within ten seconds              is the same wish: launchers, schedulers and terminals overlap
    again after that                               acts at once

A job that Slurm ends gets every signal at least twice, by itself and through its launcher; Ctrl-C reaches each process
of the terminal's group, and once more through the launcher. The second one must not undo what the first one began.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from data_pipeline.worker_signals import STOP_SIGNALS
from pretrain.launchers import Launcher

SAME_WISH = 10.0
"""Seconds in which a repeated signal is the same one."""


class StopSignal:
    """Remembers stop signals, so that the loop ends its step, saves and leaves with exit code 0.

    Args:
        launcher: who started this process as a rank, if somebody did. Its end is a signal too, for nobody else would
            ever end the ranks; and a rank that was told to stop is not told again until it has ended.
    """

    def __init__(self, launcher: Launcher | None = None) -> None:
        self.launcher = launcher
        self._signal: str | None = None
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> str | None:
        """What asks this process to stop, in words; None if nothing does."""
        if self._signal is None and self.launcher is not None and (gone := self.launcher.gone) is not None:
            return f"the launcher (process {gone}) is gone"
        return self._signal

    def __enter__(self) -> StopSignal:
        for number in sorted(STOP_SIGNALS):
            # `nohup` ignores SIGHUP on purpose. torchrun passes it on all the same, and then kills who has not ended.
            torchrun = self.launcher is not None and self.launcher.name == "torchrun"
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN and not torchrun:
                continue
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        leaving = self._signal is not None and self.launcher is not None
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if leaving else handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._at = signal.Signals(number).name, now
        elif now - self._at > SAME_WISH:
            signal.signal(number, self._previous[number])
            os.kill(os.getpid(), number)
