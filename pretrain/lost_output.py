"""Standard output whose reader is gone: what is printed is lost, and the run is not.

Ctrl-C on `deepspeed ... | tee log` ends `tee` at once, and over ssh the connection closes before the ranks have been
told: the next line that is printed would raise BrokenPipeError in the middle of the step that is to be saved.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


class LostOutput:
    """A text stream that goes on to nowhere once its pipe has broken; in everything else it is the stream it wraps."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream's."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        """As the stream's."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._lose()

    def _lose(self) -> None:
        # The descriptor itself: libraries write to it too, and what is still buffered has to go somewhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def survive_lost_output() -> None:
    """Lets this process outlive the readers of what it prints."""
    sys.stdout, sys.stderr = LostOutput(sys.stdout), LostOutput(sys.stderr)  # type: ignore[assignment]
