"""`ImageTable`: rows of named columns, numbered, read-only and read when they are asked for.

    image          encoded, as bytes; or several under one name (the masks of a photograph), as a list of bytes
    anything else  a word, a caption, a class: text or a number

    FilesTable     image files, and what is known of each; one row per file, or per files that belong together
    ParquetTable   columns of a Parquet file: bytes, {bytes, path}, lists of either, texts, numbers
    JoinedTable    several tables, one after the other

`images.decode_image` turns the bytes into pixels and refuses what is too large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.folder_files import readable
from tokenizer.inputs.documents import plain_value
from tokenizer.inputs.images import ImageError


class Row(Mapping[str, Any]):
    """One row; a value is read when it is asked for."""

    def __init__(self, table: ImageTable, number: int) -> None:
        self.table, self.number = table, number

    def __getitem__(self, column: str) -> Any:
        if column not in self.table.columns:
            raise KeyError(column)
        return self.table.value(self.number, column)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.columns)

    def __len__(self) -> int:
        return len(self.table.columns)


class ImageTable(ABC):
    """Rows of named columns; the first is the image."""

    columns: tuple[str, ...]
    path: Path
    """The file or folder."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def value(self, row: int, column: str) -> Any:
        """What lies there; images encoded."""

    @abstractmethod
    def image_sizes(self) -> Iterator[int]:
        """Bytes of every row's image, without keeping them."""

    @abstractmethod
    def name(self, row: int) -> str:
        """Where a row's image lies, for messages."""

    def row_name(self, row: int) -> str:
        """The row, for messages that name the table's path themselves."""
        return self.name(row)

    def files(self) -> list[Path]:
        """The files it consists of, in order."""
        return [self.path]

    def column(self, column: str) -> list[Any]:
        """All values of a column that holds no images."""
        return [self.value(row, column) for row in range(len(self))]

    def image(self, row: int) -> bytes:
        """The encoded image of a row. Raises ImageError when there are no bytes, or several images."""
        return as_bytes(self.value(row, self.columns[0]), self.name(row), self.columns[0])

    def content(self, row: int, column: str) -> bytes | list[bytes]:
        """The encoded image of any column, or images where it holds lists. Raises ImageError when there are none."""
        value = self.value(row, column)
        if isinstance(value, list):
            return [as_bytes(entry, self.row_name(row), column) for entry in value]
        return as_bytes(value, self.row_name(row), column)

    def row(self, number: int) -> Row:
        """A row as a mapping from columns."""
        return Row(self, number)


def as_bytes(value: Any, where: str, column: str) -> bytes:
    """The value. Raises ImageError when it is not an encoded image."""
    if not isinstance(value, bytes):
        raise ImageError(f"{where}: {column!r} is {type(value).__name__}, not bytes")
    return value


class FilesTable(ImageTable):
    """Image files.

    Args:
        path: their folder.
        rows: for every row and column the image file, or the value itself.
        columns: their names; all rows have them.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ("image",)) -> None:
        self.path, self._rows, self.columns = path, list(rows), tuple(columns)

    def __len__(self) -> int:
        return len(self._rows)

    def value(self, row: int, column: str) -> Any:
        value = self._rows[row][column]
        return value.read_bytes() if isinstance(value, Path) else value

    def image_sizes(self) -> Iterator[int]:
        return (row[self.columns[0]].stat().st_size for row in self._rows)

    def name(self, row: int) -> str:
        return readable(self._rows[row][self.columns[0]])

    def row_name(self, row: int) -> str:
        return self._rows[row][self.columns[0]].name

    def files(self) -> list[Path]:
        return [value for row in self._rows for value in row.values() if isinstance(value, Path)]


class ParquetTable(ImageTable):
    """Columns of a Parquet file.

    Args:
        path: the file.
        columns: name here -> name in the file; a sequence: the names in the file.
        whole: keep all of them in memory, for reading in random order; else one row group at a time.

    Raises:
        ImageError: damaged, or without one of the columns; with `whole`, also images that are not bytes.
    """

    def __init__(self, path: Path, columns: Mapping[str, str] | Sequence[str], whole: bool = False) -> None:
        self.path, self.whole = path, whole
        self._stored = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
        self.columns = tuple(self._stored)
        with self._open() as file:
            names = file.schema_arrow.names
            for column in self._stored.values():
                if column not in names:
                    raise ImageError(f"{path}: no column {column!r}; it has {', '.join(names)}")
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._stops = [sum(groups)] if whole else list(accumulate(groups))
        self._loaded: tuple[int, pa.Table] | None = None
        if whole:
            self._check_images()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def value(self, row: int, column: str) -> Any:
        group = bisect_right(self._stops, row)
        first = self._stops[group - 1] if group else 0
        return _plain(plain_value(self._group(group)[self._stored[column]][row - first]))

    def names_in_file(self) -> list[str]:
        """Names of all columns that the file has."""
        with self._open() as file:
            return file.schema_arrow.names

    def column(self, column: str) -> list[Any]:
        stored = self._stored[column]
        return [plain_value(value) for group in range(len(self._stops)) for value in self._group(group).column(stored)]

    def image_sizes(self) -> Iterator[int]:
        for group in range(len(self._stops)):
            images = self._group(group).column(self._stored[self.columns[0]])
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            yield from (size or 0 for size in pc.binary_length(images).to_pylist())

    def name(self, row: int) -> str:
        return f"{self.path}: row {row}"

    def row_name(self, row: int) -> str:
        return f"{self.path.name}: row {row + 1}"

    def _group(self, number: int) -> pa.Table:
        if self._loaded is None or self._loaded[0] != number:
            stored = list(self._stored.values())
            with self._open() as file:
                try:
                    found = file.read(stored) if self.whole else file.read_row_group(number, columns=stored)
                except (pa.ArrowException, OSError) as error:
                    raise ImageError(f"{self.path}: not a Parquet file that can be read ({error})") from None
            self._loaded = number, found.combine_chunks()
        return self._loaded[1]

    def _check_images(self) -> None:
        column = self._stored[self.columns[0]]
        kind = self._group(0).column(column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ImageError(f"{self.path}: column {column!r} holds {kind}, not bytes")

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise ImageError(f"{self.path}: not a Parquet file that can be read ({error})") from None


class JoinedTable(ImageTable):
    """Several tables of the same columns, one after the other."""

    def __init__(self, tables: Sequence[ImageTable]) -> None:
        self.tables = list(tables)
        self.path, self.columns = tables[0].path, tables[0].columns
        self._stops = list(accumulate(len(table) for table in tables))

    def __len__(self) -> int:
        return self._stops[-1]

    def value(self, row: int, column: str) -> Any:
        table, inner = self._locate(row)
        return table.value(inner, column)

    def column(self, column: str) -> list[Any]:
        return [value for table in self.tables for value in table.column(column)]

    def image(self, row: int) -> bytes:
        table, inner = self._locate(row)
        return table.image(inner)

    def image_sizes(self) -> Iterator[int]:
        return chain.from_iterable(table.image_sizes() for table in self.tables)

    def name(self, row: int) -> str:
        table, inner = self._locate(row)
        return table.name(inner)

    def row_name(self, row: int) -> str:
        table, inner = self._locate(row)
        return table.row_name(inner)

    def files(self) -> list[Path]:
        return [file for table in self.tables for file in table.files()]

    def _locate(self, row: int) -> tuple[ImageTable, int]:
        number = bisect_right(self._stops, row)
        table = self.tables[number]
        return table, row - self._stops[number] + len(table)


def _plain(value: Any) -> Any:
    """Images that the hub stores as {bytes, path} as their bytes, also in lists."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.get("bytes") if isinstance(value, dict) else value
