"""Folders that tell whether they are whole: a meta.json with the SHA-256 of every other file, and of what it says."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Len

from arch.outside_files import is_inner_path, read_json, typed
from pretrain.errors import CheckpointError

SealedType = TypeVar("SealedType", bound="Sealed")
META_NAME = "meta.json"
OWN = "meta_sha256"
"""The field with the checksum of all others; checkpoints of before it have none."""


@dataclass(frozen=True)
class Sealed:
    """What every such meta.json says."""

    sha256: dict[str, Annotated[str, Len(64, 64)]]
    """SHA-256 by file, as paths below the folder."""


def seal(folder: Path, **fields: Any) -> None:
    """Writes a folder's meta.json: `fields`, the SHA-256 of every other file, and its own."""
    content = json.loads(json.dumps({**fields, "sha256": file_hashes(folder)}))  # as it will be read
    (folder / META_NAME).write_text(json.dumps({**content, OWN: _own(content)}, indent=1))


def _own(content: dict[str, Any]) -> str:
    """SHA-256 of what a meta.json says, however it is laid out."""
    fields = {name: value for name, value in content.items() if name != OWN}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_sealed(path: Path, kind: type[SealedType] = Sealed) -> SealedType:  # type: ignore[assignment]
    """A meta.json as `kind`, its file names checked.

    Raises:
        CheckpointError: it is missing, is no such file, is damaged, or names a file outside of its folder.
    """
    content = read_json(path, CheckpointError)
    meta = typed(kind, content, str(path), CheckpointError)
    if content.get(OWN, own := _own(content)) != own:
        raise CheckpointError(f"{path}: damaged, it does not match its own checksum")
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
