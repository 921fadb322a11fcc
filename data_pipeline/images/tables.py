"""Images that belong together, row by row: Parquet columns or folders of files, read-only and read lazily.

    Parquet   a column per kind of image: bytes, {bytes, path}, or a list of either (several masks of one photograph)
    folder    image files, sorted by name; or one folder per column, in which files of one stem are one row

A folder of folders or of Parquet files is all of them, after the images that lie beside them. Which files count is said
in common/folder_files.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common.folder_files import FolderFiles, UnusedFilesError, check_link, find_files, readable
from data_pipeline.errors import PairsError
from tokenizer.inputs.image_stores import SUFFIXES
from tokenizer.inputs.images import ImageError, decode_image


class ImageTable(Protocol):
    """Rows of encoded images in named columns."""

    path: Path
    """The file or folder."""
    rows: int
    """Number of rows."""

    def row_name(self, row: int) -> str:
        """The row, for messages; without the path of the table."""

    def content(self, row: int, column: str) -> bytes | list[bytes]:
        """The encoded image, or images where the column holds lists. Raises ImageError when there are no bytes."""

    def files(self) -> list[Path]:
        """The files it consists of, in order."""


def open_tables(entries: Sequence[str | Path], columns: Sequence[str]) -> list[ImageTable]:
    """The tables of all entries, in order.

    Args:
        entries: Parquet files, image files, or folders.
        columns: what every row must have; one column: the names of folders do not matter.

    Raises:
        FileNotFoundError: an entry does not exist.
        PairsError: a file of another kind, a missing column, or a folder without images.
    """
    return [table for entry in entries for table in _open_entry(Path(entry), columns)]


def read_image(table: ImageTable, row: int, column: str) -> Image.Image:
    """The one image of a row, decoded.

    Raises:
        ImageError: it cannot be read.
        PairsError: the column holds lists of images.
    """
    content = table.content(row, column)
    if not isinstance(content, bytes):
        raise PairsError(f"{table.path}: column {column!r} holds lists; one image per row is needed there")
    return decode_image(content, f"{table.row_name(row)}, {column}")


class ParquetTable:
    """A Parquet file; one row group is in memory at a time."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        with self._open() as file:
            names = file.schema_arrow.names
            for column in columns:
                if column not in names:
                    raise PairsError(f"{path}: no column {column!r}; it has {', '.join(names)}")
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._first_row = [sum(counts[:group]) for group in range(len(counts) + 1)]
        self.rows = self._first_row[-1]
        self._loaded: tuple[int, pa.Table] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def row_name(self, row: int) -> str:
        return f"{self.path.name}: row {row + 1}"

    def content(self, row: int, column: str) -> bytes | list[bytes]:
        group = next(group for group, first in enumerate(self._first_row[1:]) if row < first)
        if self._loaded is None or self._loaded[0] != group:
            with self._open() as file:
                self._loaded = group, file.read_row_group(group, columns=self.columns)
        value = self._loaded[1][column][row - self._first_row[group]].as_py()
        if isinstance(value, list):
            return [_bytes(entry, self.row_name(row), column) for entry in value]
        return _bytes(value, self.row_name(row), column)

    def files(self) -> list[Path]:
        return [self.path]

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise PairsError(f"{self.path}: not a Parquet file that can be read ({error})") from None


class FolderTable:
    """Image files; `files` has the file of every column for every row."""

    def __init__(self, path: Path, files: Sequence[dict[str, Path]]) -> None:
        self.path, self._files = path, list(files)
        self.rows = len(self._files)

    def row_name(self, row: int) -> str:
        return next(iter(self._files[row].values())).name

    def content(self, row: int, column: str) -> bytes:
        return self._files[row][column].read_bytes()

    def files(self) -> list[Path]:
        return [file for row in self._files for file in row.values()]


def _open_entry(path: Path, columns: Sequence[str]) -> list[ImageTable]:
    check_link(path)
    if not path.exists():
        raise FileNotFoundError(f"{readable(path)}: no such file or folder of images")
    if path.is_file() and path.suffix.lower() == ".parquet":
        return [ParquetTable(path, columns)]
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES or len(columns) > 1:
            raise PairsError(f"{path}: expected .parquet or a folder" + (" or an image" if len(columns) == 1 else ""))
        return [FolderTable(path, [{columns[0]: path}])]
    if all((path / column).is_dir() for column in columns):
        return [FolderTable(path, _by_stem(path, columns))]
    suffixes = (*SUFFIXES, ".parquet") if len(columns) == 1 else (".parquet",)
    found = find_files(path, suffixes, deep=False)
    images = [file for file in _use(found, suffixes) if file.suffix.lower() != ".parquet"]
    tables: list[ImageTable] = [FolderTable(path, [{columns[0]: file} for file in images])] if images else []
    inner = sorted([*found.folders, *(file for file in found.files if file.suffix.lower() == ".parquet")])
    tables += [table for entry in inner for table in _open_entry(entry, columns)]
    if not tables:
        wanted = " and ".join(f"{column}/" for column in columns) if len(columns) > 1 else "images"
        raise PairsError(f"{path}: holds neither {wanted} nor .parquet files")
    return tables


def _by_stem(path: Path, columns: Sequence[str]) -> list[dict[str, Path]]:
    """Rows of the files that have the same name, up to the suffix, in the folder of every column."""
    found = []
    for column in columns:
        files: dict[str, Path] = {}
        for file in _use(find_files(path / column, SUFFIXES), SUFFIXES):
            stem = str(file.relative_to(path / column).with_suffix(""))
            if stem in files:
                raise PairsError(
                    f"{path / column}: {files[stem].name} and {file.name} have one name; remove one of them"
                )
            files[stem] = file
        found.append(files)
    for column, files in zip(columns, found, strict=True):
        if lacking := sorted(found[0].keys() ^ files.keys()):
            raise PairsError(
                f"{path}: {lacking[0]!r} is in only one of {columns[0]}/ and {column}/ ({len(lacking)} such files);"
                " every image needs a counterpart of the same name"
            )
    return [dict(zip(columns, (files[stem] for files in found), strict=True)) for stem in sorted(found[0])]


def _use(found: FolderFiles, suffixes: Sequence[str]) -> list[Path]:
    try:
        return found.use(suffixes)
    except UnusedFilesError as error:
        raise PairsError(str(error)) from None


def _bytes(value: Any, where: str, column: str) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ImageError(f"{where}: {column!r} is {type(content).__name__}, not bytes")
    return content
