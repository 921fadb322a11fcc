"""Files and folders that are either whole or absent, also after a kill or a power cut.

    report.json.tmp   written, forced to the disk   -> report.json   the old file or the new one, never a half of one

What a killed call leaves under the temporary name, the next call overwrites.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def fsync(path: Path) -> None:
    """Forces a file or directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished file or folder its name and forces that to disk; the content was forced before."""
    temporary.replace(path)
    fsync(path.parent)


@contextmanager
def appearing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Lends a temporary name beside `path`; what the block writes there becomes `path`, or nothing if it raises.

    Args:
        path: the file to write; its folder exists.
        durable: forces it to disk; without, a power cut may leave an old or an empty file, a kill may not.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        if durable:
            fsync(temporary)
            publish(temporary, path)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_file():
            temporary.unlink()


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file (text as UTF-8) in one step; makes its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Mapping[str, Any], ascii_only: bool = False) -> None:
    """Writes JSON in one step, a field a line; `ascii_only` writes everything else as escapes, even lone surrogates."""
    write_whole(path, json.dumps(content, ensure_ascii=ascii_only, indent=1) + "\n")


def owned_name(path: Path) -> Path:
    """A temporary name that no other process writes to, for files that several may be writing at the same time."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


@contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """Lends an empty folder beside `path` that takes its place when the block ends well, and vanishes otherwise.

    What was at `path` is removed then, and not before: a call that is killed between the two, or whose folder cannot
    take the place, leaves it where the next call finds it. Leftovers of killed calls are removed first.
    """
    partial, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "old"))
    _put_back(old, path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.replace(old)
        partial.replace(path)
    finally:
        _put_back(old, path)
        shutil.rmtree(partial, ignore_errors=True)


def _put_back(old: Path, path: Path) -> None:
    """Gives what was moved aside its place again if nothing took it; removes it otherwise."""
    if old.exists() and not path.exists():
        old.replace(path)
    shutil.rmtree(old, ignore_errors=True)
