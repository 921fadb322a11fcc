"""Cuts the input of `prepare` into parts: one datatrove task and one shard each.

    entries of `input` -> files, data sets -> units (a file, or a range of it) -> parts (units that follow each other)

The cut depends on the input alone, never on the number of workers, so the shards do not either. Plain .jsonl and
line-wise .txt are cut at line ends, Parquet at row groups, data sets and pairs of images at rows; a compressed file or
a .json is one unit, so give several of them to keep several workers busy.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from common.atomic_files import write_json
from common.folder_files import readable
from common.text_streams import compression_of, damage_named, kind_of
from data_pipeline.errors import PrepareError
from data_pipeline.shards.prepare_config import PrepareConfig
from tokenizer.inputs.documents import LINES, columns_for, list_files, looks_local

SMALLEST_PART, LARGEST_PART, PARTS = 4 * 2**20, 256 * 2**20, 64
FINGERPRINT_BYTES = 2**20

Kind = Literal["jsonl", "json", "document", "lines", "parquet", "dataset", "pairs"]


@dataclass(frozen=True)
class Unit:
    """A stretch of one input, read from front to back."""

    kind: Kind
    """How to read it."""
    path: str
    """File, data set directory or hub id."""
    name: str
    """The input's name in reports: relative to the entry of `input` that it was found under."""
    start: int
    """First byte (jsonl, lines), row group (parquet), row (dataset) or item of the `PairSet` (pairs)."""
    stop: int
    """One past the last."""
    size: int
    """Stored bytes (pairs: bytes of the pixels to encode); the progress bar's unit."""


@dataclass(frozen=True)
class Plan:
    """All parts, and what they were made from."""

    parts: list[list[Unit]]
    """The units of each task."""
    inputs: dict[str, Any]
    """Names, sizes and content hashes of the inputs, and the options that shape the shards."""

    def save(self, path: Path) -> None:
        """Write the plan where tasks on other nodes can read it."""
        write_json(path, asdict(self), ascii_only=True)  # names that are not UTF-8 are read back as they are

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls([[Unit(**unit) for unit in part] for part in content["parts"]], content["inputs"])


def make_plan(config: PrepareConfig) -> Plan:
    """Find all inputs and cut them.

    Raises:
        FileNotFoundError: an entry is neither a file or directory nor a readable data set.
        PrepareError: a file of unknown kind, a file given twice, or nothing to read.
    """
    found = [found for entry in config.input for found in _find(entry, config)]
    units, described = [unit for unit, _ in found], [description for _, description in found]
    refuse_twice(unit.path for unit in units)
    part_bytes = part_bytes_for(config, sum(unit.size for unit in units))
    pieces = [piece for unit in units for piece in cut(unit, part_bytes)]
    if not pieces:
        raise PrepareError(f"{', '.join(config.input)}: nothing to read")
    inputs = {
        "files": described,
        "text_field": config.text_field,
        "text_files": config.text_files,
        "part_bytes": part_bytes,
    }
    if config.broken_text != "skip":  # shards from before there was a choice are of the default
        inputs["broken_text"] = config.broken_text
    return Plan(group(pieces, part_bytes), inputs)


def part_bytes_for(config: PrepareConfig, size: int) -> int:
    """Bytes of a part, for an input of so many."""
    return config.part_bytes or min(max(size // PARTS, SMALLEST_PART), LARGEST_PART)


def refuse_twice(paths: Iterable[str]) -> None:
    """Raise PrepareError if a path comes twice, perhaps by way of a link."""
    seen: dict[str, str] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            also = "" if seen[real] == path else f" (as {readable(seen[real])})"
            raise PrepareError(f"{readable(path)}: given twice in `input`{also}; its documents would be there twice")
        seen[real] = path


def is_compressed(path: str) -> bool:
    """Whether the file can only be read from its beginning."""
    return bool(compression_of(path))


def open_dataset(path: str, split: str) -> Any:
    """The `datasets.Dataset` of a directory on disk, or of a hub id with an optional `@configuration`.

    Raises PrepareError when it cannot be loaded or has no such split.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk  # a second of import that files do not need

    try:
        if Path(path).exists():
            dataset = load_from_disk(path)
        else:
            name, _, configuration = path.partition("@")
            dataset = load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the hub client raises many unrelated types; the message has to name the data set
        raise PrepareError(
            f"{path}: no file or directory of this name, and not readable as a data set with split {split!r}"
            f" ({type(error).__name__}: {error})"
        ) from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise PrepareError(f"{path}: no split {split!r}; choose one of {', '.join(dataset)}")
        dataset = dataset[split]
    return dataset


def _find(entry: str, config: PrepareConfig) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Whole files and data sets under one entry of `input`, each with a description by content."""
    path = Path(entry)
    on_disk = path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if on_disk or not looks_local(entry):
        yield _dataset(entry, config)
        return
    try:
        files = list_files([entry])
    except ValueError as error:
        raise PrepareError(str(error)) from error
    for file in files:
        name = readable(file.relative_to(path) if path.is_dir() else file.name)
        size = file.stat().st_size
        # The path of a link, not of its target: its name says how to read it.
        unit = Unit(_kind(file.name, config), os.path.abspath(file), name, 0, size, size)  # noqa: PTH100
        yield unit, {"name": name, "size": size, "hash": content_hash([file])}


def _dataset(entry: str, config: PrepareConfig) -> tuple[Unit, dict[str, Any]]:
    dataset = open_dataset(entry, config.split)
    try:
        columns_for(config.text_field, dataset.data.schema, entry)
    except ValueError as error:
        raise PrepareError(f"{error}; set text_field") from None
    local = Path(entry).exists()
    path, name = (str(Path(entry).resolve()), Path(entry).name) if local else (entry, entry)
    rows = len(dataset)
    unit = Unit("dataset", path, name, 0, rows, max(1, dataset.data.nbytes))
    return unit, {"name": name, "split": config.split, "rows": rows, "hash": dataset._fingerprint}


def _kind(name: str, config: PrepareConfig) -> Kind:
    kind = kind_of(name)
    if kind in (".parquet", ".json"):
        return "parquet" if kind == ".parquet" else "json"
    return "jsonl" if kind in LINES else config.text_files


def content_hash(files: Sequence[Path]) -> str:
    """sha256 of size, first and last MiB of each: tells files apart without reading a corpus twice."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            digest.update(stream.read(FINGERPRINT_BYTES))
            stream.seek(max(FINGERPRINT_BYTES, size - FINGERPRINT_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def cut(unit: Unit, part_bytes: int) -> list[Unit]:
    """The unit in pieces of about `part_bytes`, where its kind allows it."""
    if unit.kind == "parquet":
        return _row_groups(unit)
    if unit.kind in ("document", "json") or is_compressed(unit.path):
        return [unit]
    length = unit.stop - unit.start
    pieces = max(1, min(unit.size // part_bytes, length))
    bounds = [unit.start + length * piece // pieces for piece in range(pieces + 1)]
    sizes = [unit.size * piece // pieces for piece in range(pieces + 1)]
    return [
        Unit(unit.kind, unit.path, unit.name, bounds[n], bounds[n + 1], sizes[n + 1] - sizes[n]) for n in range(pieces)
    ]


def _row_groups(unit: Unit) -> list[Unit]:
    with damage_named(Path(unit.path)), pq.ParquetFile(unit.path) as table:
        rows = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    total = max(1, sum(rows))
    return [
        Unit(unit.kind, unit.path, unit.name, group, group + 1, unit.size * count // total)
        for group, count in enumerate(rows)
    ]


def group(units: Sequence[Unit], part_bytes: int) -> list[list[Unit]]:
    """Consecutive units, in parts that end when they hold `part_bytes`."""
    parts: list[list[Unit]] = []
    size = part_bytes
    for unit in units:
        if size >= part_bytes:
            parts.append([])
            size = 0
        parts[-1].append(unit)
        size += unit.size
    return parts
