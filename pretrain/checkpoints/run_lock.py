"""One job at a time per run folder: two that write the same checkpoints would ruin both.

Rank 0 holds a POSIX record lock on RUN/lock while it lives. The kernel drops it with the process, however that ends, so
nothing has to be cleaned up after a kill; worker processes do not inherit it; NFS carries it between hosts.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from datetime import datetime
from pathlib import Path

from pretrain.errors import ConfigurationError

NAME = "lock"


class RunLock:
    """Holds a run folder until this process ends or `release` is called.

    Raises:
        ConfigurationError: another process holds it; names its host, number and start.
        OSError: the folder cannot be written to.
    """

    def __init__(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._file = (run / NAME).open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = self._holder()
            self._file.close()
            raise ConfigurationError(
                f"output {run}: another job trains there ({holder}). Wait for it, stop it with SIGTERM (it saves and "
                "leaves), or choose another output"
            ) from None
        except OSError as error:  # a file system without locks
            print(f"train.py: {run / NAME}: {error.strerror}; two jobs in this folder would not notice each other",
                  file=sys.stderr)  # fmt: skip
        me = {"host": socket.gethostname(), "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        self._file.truncate(0)
        self._file.write(json.dumps(me))
        self._file.flush()

    def _holder(self) -> str:
        self._file.seek(0)
        try:
            held = json.loads(self._file.read())
            return f"host {held['host']}, process {held['process']}, since {held['since']}"
        except (ValueError, KeyError, TypeError):  # it is just being written
            return "it has only just begun"

    def release(self) -> None:
        """Lets go of the folder before the process ends."""
        self._file.close()
