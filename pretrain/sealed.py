"""Folders that tell whether they are whole: a meta.json with the SHA-256 of every other file."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

META_NAME = "meta.json"


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory` except meta.json, by relative name."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != META_NAME)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip((str(p.relative_to(directory)) for p in files), pool.map(_sha256, files), strict=True))


def check_files(path: Path) -> str | None:
    """What is wrong with such a folder, or None."""
    try:
        expected = json.loads((path / META_NAME).read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        return f"{META_NAME} is missing or unreadable ({type(error).__name__})"
    if missing := sorted(name for name in expected if not (path / name).is_file()):
        return f"{missing[0]} is missing"
    actual = file_hashes(path)
    damaged = sorted(name for name in expected if actual.get(name) != expected[name])
    return f"{damaged[0]} does not match its checksum" if damaged else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()
