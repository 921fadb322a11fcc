"""What the loader's worker processes do when something is told to stop: they read on as long as their trainer lives.

    a stop signal from a launcher, a terminal, a scheduler    nothing: the trainer, told too, still needs batches
    a stop signal from the trainer itself                     ends the worker: it is how multiprocessing ends one
    the trainer gone                                          ends the worker

Launchers signal the whole process tree (DeepSpeed), the rank's process group (torchrun), the terminal's (Ctrl-C) or
every process of a job step (Slurm). A worker that obeys takes the step with it that is to be saved. One that ignored
SIGTERM outright would be worse: a trainer that ends by an error terminates its workers and waits for them, forever.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""What launchers, schedulers, Ctrl-C and a terminal that closes send."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether the trainer is still there."""


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Holds stop signals back from this thread and from processes forked by it, which keep them held back.

    Without it, a signal could hit a new worker before it has come to `live_with_parent`. This thread gets at the end
    what was sent meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_with_parent(_worker: int = 0) -> None:
    """Initialiser of a DataLoader's worker: stop signals end it only if its parent sends them, or is gone."""
    # The threads that libraries start later inherit this, so that one thread gets every signal, with its sender.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_watch, args=(parent_process(), os.getppid()), name="signals", daemon=True).start()


def _watch(parent: BaseProcess, above: int) -> None:
    """Ends this process when `parent` says so or is gone; `above` is whose child it is: the parent, or its fork server.

    Both are looked at: workers forked later hold open the pipe whose end tells that the parent has ended.
    """
    while True:
        received = signal.sigtimedwait(STOP_SIGNALS, LOOK_EVERY)
        if os.getppid() != above or not parent.is_alive():
            os._exit(1)
        if received is not None and received.si_pid == parent.pid:
            os._exit(0)  # as torch's own handler: another code would be reported as a crash
