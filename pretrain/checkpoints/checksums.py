"""Folders that tell whether they are whole: a meta.json with the SHA-256 of every other file, and of what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Len

from common.untrusted_files import is_inner_path, read_json, typed
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


def seal(folder: Path, known: Mapping[str, str] | None = None, **fields: Any) -> None:
    """Writes a folder's meta.json: `fields`, the SHA-256 of every other file, and its own.

    Args:
        folder: what is sealed.
        known: SHA-256 of files that whoever wrote them has hashed, by relative name; the others are hashed here.
        fields: what else to say.
    """
    known = known or {}
    hashes = dict(
        sorted({**file_hashes(folder, [path for path in _names(folder) if path not in known]), **known}.items())
    )
    content = json.loads(json.dumps({**fields, "sha256": hashes}))  # as it will be read
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


def file_hashes(directory: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """SHA-256 by relative name: of the named files below `directory`, or of all except meta.json."""
    names = _names(directory) if names is None else names
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(_sha256, (directory / name for name in names)), strict=True))


def _names(directory: Path) -> list[str]:
    """Every file below `directory` except meta.json, relative to it."""
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file() and p.name != META_NAME)


def check_files(path: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with such a folder, or None.

    Args:
        path: the folder.
        rank: which share of the files to hash, where several processes check one folder.
        ranks: how many processes do.
    """
    try:
        expected: dict[str, str] = read_sealed(path / META_NAME).sha256
    except CheckpointError as error:
        return f"{META_NAME} is missing or unreadable ({error})"
    if links := sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_symlink()):
        return f"{links[0]} is a link, which may lead out of the folder"
    if missing := sorted(name for name in expected if not (path / name).is_file()):
        return f"{missing[0]} is missing"
    actual = file_hashes(path, sorted(expected)[rank::ranks])
    damaged = [name for name, found in actual.items() if found != expected[name]]
    return f"{damaged[0]} does not match its checksum" if damaged else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()
