"""Word images: LMDB, Parquet, or a folder with a label file, as an `ImageTable` with columns `image` and `text`.

    LMDB      num-samples, image-%09d, label-%09d, counted from 1: the layout of every scene-text toolkit
    Parquet   a column `image` (bytes, or {bytes, path}) and a column `text` (or `label`)
    folder    a label file (labels.txt, gt.txt, labels.tsv) of `file<TAB>label`, or labels.csv of `file,label`: see
              label_files.py

A folder that holds none of these itself, but folders or Parquet files that do, is their concatenation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import lmdb

from common.atomic_files import appearing_folder
from common.folder_files import EXAMPLES, check_link, find_files, readable, tell
from data_pipeline.errors import SourceError
from data_pipeline.words.label_files import LABEL_FILES, find_label_file, read_label_file
from tokenizer.inputs.broken_text import explain_broken
from tokenizer.inputs.image_stores import SUFFIXES
from tokenizer.inputs.image_table import FilesTable, ImageTable, JoinedTable, ParquetTable


def open_words(path: str | Path) -> ImageTable:
    """Opens a store of any kind.

    Raises:
        SourceError: none of the kinds, or damaged; names the file.
        FileNotFoundError: there is nothing.
    """
    path = Path(path)
    found = find_stores(path)
    if found != [path]:
        return JoinedTable([open_words(entry) for entry in found])
    if path.is_file():
        return _open_parquet(path)
    if (path / "data.mdb").is_file():
        return LmdbTable(path)
    label_file = find_label_file(path)
    assert label_file is not None  # find_stores has seen it
    return _open_folder(label_file)


def find_stores(path: Path) -> list[Path]:
    """The path itself if it is a store, else the Parquet files and folders in it, sorted.

    Raises:
        SourceError: a file of another kind, or a folder with nothing in it.
        FileNotFoundError: there is nothing.
    """
    check_link(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder of word images")
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise SourceError(f"{path}: word images come as .parquet, or as a folder (LMDB, or with a label file)")
    if path.is_file() or (path / "data.mdb").is_file() or find_label_file(path) is not None:
        return [path]
    found = find_files(path, (".parquet",), deep=False)
    inner = sorted([*found.files, *found.folders])
    found.use((".parquet",))
    if not inner:
        raise SourceError(f"{path}: holds neither data.mdb nor {', '.join(LABEL_FILES)} nor .parquet files")
    return inner


def content_hash(store: ImageTable) -> str:
    """SHA-256 of every label and of the size of every image: what a run remembers of its data."""
    digest = hashlib.sha256()
    for label, size in zip(store.column("text"), store.image_sizes(), strict=True):
        digest.update(f"{label}\0{size}\0".encode())
    return digest.hexdigest()


class LmdbTable(ImageTable):
    """An LMDB environment in the toolkits' layout."""

    def __init__(self, path: Path) -> None:
        self.path, self.columns = path, ("image", "text")
        with self._environment.begin() as transaction:
            count = transaction.get(b"num-samples")
            if count is None or not count.isdigit():
                raise SourceError(f"{path}: key 'num-samples' is {'missing' if count is None else repr(count)}")
            labels = []
            cursor = transaction.cursor()
            for number in range(1, int(count) + 1):
                if not cursor.set_key(b"image-%09d" % number):
                    raise SourceError(f"{path}: key 'image-{number:09d}' is missing, of {int(count)}")
                label = transaction.get(b"label-%09d" % number)
                if label is None:
                    raise SourceError(f"{path}: key 'label-{number:09d}' is missing, of {int(count)}")
                try:
                    labels.append(label.decode())
                except UnicodeDecodeError:
                    raise SourceError(f"{path}: 'label-{number:09d}' is not UTF-8: {label!r}") from None
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def _environment(self) -> lmdb.Environment:
        return open_environment(self.path)

    def name(self, row: int) -> str:
        return f"{self.path}: image-{row + 1:09d}"

    def value(self, row: int, column: str) -> str | bytes:
        if column == "text":
            return self._labels[row]
        with self._environment.begin() as transaction:
            content = transaction.get(b"image-%09d" % (row + 1))
        if content is None:
            raise SourceError(f"{self.name(row)}: the key is gone")
        return bytes(content)

    def image_sizes(self) -> Iterator[int]:
        with self._environment.begin(buffers=True) as transaction:
            for number in range(1, len(self._labels) + 1):
                yield len(transaction.get(b"image-%09d" % number) or b"")


_environments: dict[Path, lmdb.Environment] = {}


def open_environment(path: Path) -> lmdb.Environment:
    """An LMDB for reading; LMDB wants it opened once in a process, and again after a fork.

    Raises:
        SourceError: it cannot be opened.
    """
    if path not in _environments:
        try:
            _environments[path] = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
        except lmdb.Error as error:
            raise SourceError(f"{path}: not an LMDB that can be read ({error})") from None
    return _environments[path]


def _close_inherited() -> None:
    """In a forked process: gives up the parent's environments, which lmdb 3 counts as open here."""
    for environment in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _open_parquet(path: Path) -> ImageTable:
    names = ParquetTable(path, ["image"]).names_in_file()
    text = next((name for name in ("text", "label") if name in names), None)
    if text is None:
        raise SourceError(f"{path}: needs columns 'image' and 'text' (or 'label'), has {', '.join(names)}")
    table = ParquetTable(path, {"image": "image", "text": text}, whole=True)
    for row, label in enumerate(table.column("text")):
        if not isinstance(label, str):
            raise SourceError(f"{path}: row {row}: '{text}' is {label!r}, not a text")
        if (problem := explain_broken(label)) is not None:
            raise SourceError(f"{path}: row {row}: '{text}' is {problem}")
    return table


def _open_folder(label_file: Path) -> ImageTable:
    """Image files beside a label file; no name may lead out of the folder."""
    labelled, folder = read_label_file(label_file), label_file.parent
    named = {os.path.normpath(entry.file) for entry in labelled}
    if others := [file for file in find_files(folder, SUFFIXES).files if os.path.normpath(file) not in named]:
        shown = ", ".join(readable(file.relative_to(folder)) for file in others[:EXAMPLES])
        tell(f"{readable(label_file)}: names {len(named):,} images; {len(others):,} more are not used ({shown})")
    return FilesTable(folder, [{"image": entry.file, "text": entry.label} for entry in labelled], ("image", "text"))


class LmdbWriter:
    """Writes the toolkits' layout; the folder appears, complete, when the block ends without an error.

    Raises:
        SourceError: the folder is there already.
    """

    BATCH = 1000
    """Images of one transaction."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise SourceError(f"{path}: is there already; choose another folder or remove it")
        self.path, self.count = path, 0
        self._folder = appearing_folder(path)
        self._waiting: list[tuple[bytes, bytes]] = []

    def __enter__(self) -> LmdbWriter:
        self._environment = lmdb.open(str(self._folder.__enter__()), map_size=2**40, map_async=True)
        return self

    def add(self, image: bytes, label: str) -> None:
        """Appends an encoded image and its label."""
        self.count += 1
        self._waiting += [(b"image-%09d" % self.count, image), (b"label-%09d" % self.count, label.encode())]
        if len(self._waiting) >= 2 * self.BATCH:
            self._flush()

    def _flush(self) -> None:
        with self._environment.begin(write=True) as transaction:
            for key, value in self._waiting:
                transaction.put(key, value)
        self._waiting = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._waiting.append((b"num-samples", str(self.count).encode()))
            self._flush()
            self._environment.sync(True)
        self._environment.close()
        self._folder.__exit__(kind, error, trace)
