"""Where a run's data lie now: as order.json says, beside the run if both were moved, or where `replay --shards` points.

Shards are recognised by content: order.json holds, for each directory, a hash over the checksums in its meta.json. The
runs of earlier versions have none; there the directories that `--shards` names are taken in the run's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError, ShardError
from common.folder_files import readable
from common.token_shards import META_FILE, Meta
from common.untrusted_files import typed

LEVELS = 3
"""Folders above the run below which its data are looked for under the end of their old path."""


@dataclass(frozen=True)
class _Shards:
    shards: list[str]
    contents: list[str] | None = None


def found_again(content: Mapping[str, Any], kind: str, path: Path, elsewhere: Sequence[str]) -> dict[str, Any]:
    """The content of an order.json with the present places of its data.

    Args:
        content: of order.json.
        kind: of data; words are verified where they are opened.
        path: the order.json.
        elsewhere: where else to look: directories of data, or folders of them.

    Raises:
        DataError: data are neither where they were nor elsewhere; names them.
    """
    try:
        return _found_again(content, kind, path, elsewhere)
    except DataError as error:
        raise DataError(f"{readable(path)}: {error}") from None


def _found_again(content: Mapping[str, Any], kind: str, path: Path, elsewhere: Sequence[str]) -> dict[str, Any]:
    if kind == "words":
        if elsewhere and len(elsewhere) != len(content.get("stores", [])):
            raise DataError(
                f"the run has {len(content.get('stores', []))} stores of words; name each in --shards, in order"
            )
        return {**content, "stores": list(elsewhere)} if elsewhere else dict(content)
    given = typed(_Shards, content, "not the order of a run", DataError)
    if given.contents is None:
        return {**content, "shards": _in_order(given.shards, elsewhere)}
    if len(given.contents) != len(given.shards):
        raise DataError(f"contents: expected {len(given.shards)} entries, found {len(given.contents)}")
    wanted = zip(given.shards, given.contents, strict=True)
    return {**content, "shards": [_search(old, content_hash, path.parent, elsewhere) for old, content_hash in wanted]}


def _in_order(shards: Sequence[str], elsewhere: Sequence[str]) -> list[str]:
    if elsewhere and len(elsewhere) != len(shards):
        raise DataError(f"--shards: the run has {len(shards)} shard directories; name each of them, in order")
    if not elsewhere and (gone := [shard for shard in shards if not (Path(shard) / META_FILE).is_file()]):
        raise DataError(_not_there(gone[0]))
    return list(elsewhere or shards)


def _search(old: str, content: str, run: Path, elsewhere: Sequence[str]) -> str:
    """The first place that holds shards of this content."""
    for place in (Path(old), *_named(elsewhere), *_beside(run, Path(old))):
        if _content_of(place) == content:
            return str(place)
    if (Path(old) / META_FILE).is_file():
        raise DataError(
            f"{readable(old)}: not the shards of the run; they were written again since, so its batches are gone"
        )
    raise DataError(_not_there(old))


def _named(elsewhere: Sequence[str]) -> Iterator[Path]:
    """The directories that were named, and those of shards below them."""
    for entry in map(Path, elsewhere):
        if not entry.is_dir():
            raise DataError(f"--shards: {readable(entry)}: no such directory")
        yield from (file.parent for file in sorted(entry.rglob(META_FILE)))


def _beside(run: Path, old: Path) -> Iterator[Path]:
    """Where the data lie if a folder that holds them and the run was moved or renamed."""
    parts = [part for part in old.parts if part != old.anchor]
    for above in list(run.resolve().parents)[:LEVELS]:
        for length in range(len(parts), 0, -1):
            yield above.joinpath(*parts[-length:])


def _content_of(directory: Path) -> str | None:
    try:
        return Meta.load(directory).content if (directory / META_FILE).is_file() else None
    except (ShardError, OSError):
        return None


def _not_there(shard: str) -> str:
    return (
        f"{readable(shard)}: the run's shards are not there any more; say where they are now with --shards DIR (the"
        " directories, or a folder that holds them)"
    )
