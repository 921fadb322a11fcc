"""Images that belong together, row by row: Parquet columns or folders of files, read-only and read lazily.

    Parquet   a column per kind of image: bytes, {bytes, path}, or a list of either (several masks of one photograph)
    folder    image files, sorted by name; or one folder per column, in which files of one stem are one row

A folder of folders or of Parquet files is all of them, after the images that lie beside them. Which files count is said
in common/folder_files.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from common.folder_files import FolderFiles, UnusedFilesError, check_link, find_files, readable
from data_pipeline.errors import PairsError
from tokenizer.inputs.image_stores import SUFFIXES
from tokenizer.inputs.image_table import FilesTable, ImageTable, ParquetTable
from tokenizer.inputs.images import ImageError, decode_image


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


def _open_entry(path: Path, columns: Sequence[str]) -> list[ImageTable]:
    check_link(path)
    if not path.exists():
        raise FileNotFoundError(f"{readable(path)}: no such file or folder of images")
    if path.is_file() and path.suffix.lower() == ".parquet":
        try:
            return [ParquetTable(path, columns)]
        except ImageError as error:
            raise PairsError(str(error)) from None
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES or len(columns) > 1:
            raise PairsError(f"{path}: expected .parquet or a folder" + (" or an image" if len(columns) == 1 else ""))
        return [FilesTable(path, [{columns[0]: path}], columns)]
    if all((path / column).is_dir() for column in columns):
        return [FilesTable(path, _by_stem(path, columns), columns)]
    suffixes = (*SUFFIXES, ".parquet") if len(columns) == 1 else (".parquet",)
    found = find_files(path, suffixes, deep=False)
    images = [file for file in _use(found, suffixes) if file.suffix.lower() != ".parquet"]
    tables: list[ImageTable] = [FilesTable(path, [{columns[0]: file} for file in images], columns)] if images else []
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
