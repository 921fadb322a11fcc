"""Commands that run other commands, and how they end before their work is done: together.

Ctrl-C reaches both from the terminal. What is run then saves what it does, for which it needs more than the quarter of
a second that `subprocess.run` gives before it kills. SIGTERM reaches the outer one only, and is passed on.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the body as Ctrl-C does, by KeyboardInterrupt, after it was passed on to what this process runs."""

    def interrupt(*_: object) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_to_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command and returns its exit code; if this process is interrupted, the command still comes to its end.

    Raises:
        KeyboardInterrupt: after that end, or at once if it is interrupted again meanwhile.
    """
    child = subprocess.Popen(command, env=environment)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise
