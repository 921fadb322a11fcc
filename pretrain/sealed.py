"""Folders that tell whether they are whole: a meta.json with the SHA-256 of every other file."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from annotated_types import Len

from arch.outside_files import is_inner_path, read_json, typed
from pretrain.errors import CheckpointError

SealedType = TypeVar("SealedType", bound="Sealed")
META_NAME = "meta.json"


@dataclass(frozen=True)
class Sealed:
    """What every such meta.json says."""

    sha256: dict[str, Annotated[str, Len(64, 64)]]
    """SHA-256 by file, as paths below the folder."""


def read_sealed(path: Path, kind: type[SealedType] = Sealed) -> SealedType:  # type: ignore[assignment]
    """A meta.json as `kind`, its file names checked.

    Raises:
        CheckpointError: it is missing, is no such file, or names a file outside of its folder.
    """
    meta = typed(kind, read_json(path, CheckpointError), str(path), CheckpointError)
    if outside := [name for name in meta.sha256 if not is_inner_path(name)]:
        raise CheckpointError(f"{path}: {outside[0]!r} is not the path of a file in its folder")
    return meta


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory` except meta.json, by relative name."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != META_NAME)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip((str(p.relative_to(directory)) for p in files), pool.map(_sha256, files), strict=True))


def check_files(path: Path) -> str | None:
    """What is wrong with such a folder, or None."""
    try:
        expected: dict[str, str] = read_sealed(path / META_NAME).sha256
    except CheckpointError as error:
        return f"{META_NAME} is missing or unreadable ({error})"
    if links := sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_symlink()):
        return f"{links[0]} is a link, which may lead out of the folder"
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
