"""RUN/status.json: one small file that says how a run is doing, for people, scripts and `python -m pretrain status`.

Rank 0 replaces it at every change of phase and otherwise every few seconds, always whole. What it holds is the newest
row of each kind of metrics.jsonl, the phase, and when each of the ranks was last heard of; a run that was killed leaves
it as it was, and the reader sees that its process is gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.atomic_files import appearing

NAME = "status.json"
FORMAT = 1
PAUSE = 5.0
"""Seconds between writes while nothing but the step changes."""
RUNNING, FAILED = "running", "failed"


class RunStatus:
    """Keeps the file; a disabled one (other ranks) does nothing. Threads may call it.

    Args:
        run: run directory.
        total_steps: optimizer steps of the whole run.
        ranks: how many processes train.
        enabled: whether this rank writes.
    """

    def __init__(self, run: Path, total_steps: int, ranks: int, enabled: bool) -> None:
        self.path, self.enabled = run / NAME, enabled
        self._content: dict[str, Any] = {
            "format": FORMAT,
            "state": RUNNING,
            "detail": "",
            "phase": "start",
            "step": 0,
            "total_steps": total_steps,
            "ranks": ranks,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": time.time(),
        }
        self._written = 0.0
        self._lock = threading.Lock()

    def update(self, urgent: bool = False, **fields: Any) -> None:
        """Takes new values; writes them now if they are urgent, or if the last write is `PAUSE` seconds old."""
        if not self.enabled:
            return
        with self._lock:
            self._content.update(fields)
            now = time.monotonic()
            if urgent or now - self._written > PAUSE:
                self._written = now
                self._write()

    def row(self, kind: str, row: dict[str, Any]) -> None:
        """Takes a row of metrics.jsonl: the newest of its kind counts."""
        newest: dict[str, Any] = {f"last_{kind}": row}
        self.update(urgent=False, **newest)

    def end(self, state: str, detail: str = "") -> None:
        """The last write: how the run ended, in one word and in one sentence."""
        self.update(urgent=True, state=state, detail=detail)

    def _write(self) -> None:
        # Neither forced to disk nor worth an error: the run goes on without it, on a full disk for example.
        with suppress(OSError), appearing(self.path, durable=False) as temporary:
            temporary.write_text(json.dumps(self._content | {"written": time.time()}, ensure_ascii=False))
