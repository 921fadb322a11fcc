"""Worker processes that do not outlive the process that started them."""

import os
from multiprocessing import parent_process
from signal import SIG_DFL, SIGINT, signal
from threading import Thread


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Initialiser of a worker: ends it when its parent is gone, so that kill -9 leaves no writers behind, and at Ctrl-C
    without a word, for the parent says what there is to say."""
    signal(SIGINT, SIG_DFL)

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
