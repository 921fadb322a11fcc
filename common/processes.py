"""Worker processes that do not outlive the process that started them, and are quiet when it is interrupted."""

import os
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from signal import SIG_BLOCK, SIG_DFL, SIG_SETMASK, SIG_UNBLOCK, SIGINT, pthread_sigmask, signal
from threading import Thread
from typing import Any, ClassVar


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker(SpawnProcess):
    def start(self) -> None:
        """Starts it with SIGINT held back, until `end_with_parent`: its imports would answer with a traceback."""
        before = pthread_sigmask(SIG_BLOCK, {SIGINT})
        try:
            super().start()
        finally:
            pthread_sigmask(SIG_SETMASK, before)


class WorkerContext(SpawnContext):
    """How worker processes start. Their initialiser is `end_with_parent`."""

    Process: ClassVar[Any] = _Worker


def end_with_parent() -> None:
    """Initialiser of a worker: ends it when its parent is gone, so that kill -9 leaves no writers behind, and at Ctrl-C
    without a word, for the parent says what there is to say."""
    signal(SIGINT, SIG_DFL)
    pthread_sigmask(SIG_UNBLOCK, {SIGINT})

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
