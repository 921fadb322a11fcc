"""Images without labels: files, folders of them, or a column of Parquet files, as one `ImageTable`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from common.folder_files import UnusedFilesError, check_link, find_files, readable
from tokenizer.inputs.image_table import FilesTable, ImageTable, JoinedTable, ParquetTable
from tokenizer.inputs.images import ImageError, decode_image, resize_and_crop

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of image files, in any case."""


def open_images(paths: str | Path | Sequence[str | Path], column: str = "image") -> ImageTable:
    """Opens files and folders, one after the other.

    Args:
        paths: image files, folders of them, at any depth (see folder_files.py), and .parquet files.
        column: of a Parquet file: bytes, or the hub's {bytes, path}.

    Raises:
        ImageError: an entry is missing or holds no image, or much of a folder is no image; names it.
    """
    entries = [paths] if isinstance(paths, (str, Path)) else list(paths)
    stores = [_open(Path(entry), column) for entry in entries]
    for entry, store in zip(entries, stores, strict=True):
        if not len(store):
            raise ImageError(f"{entry}: holds no images ({', '.join(SUFFIXES)}, or .parquet)")
    if not stores:
        raise ImageError("images: name at least one file or folder")
    return stores[0] if len(stores) == 1 else JoinedTable(stores)


def _open(path: Path, column: str) -> ImageTable:
    try:
        check_link(path)
        if path.is_dir():
            found = find_files(path, (*SUFFIXES, ".parquet"))
            return _of_files(found.use((*SUFFIXES, ".parquet")), column)
    except (FileNotFoundError, UnusedFilesError) as error:
        raise ImageError(str(error)) from None
    if not path.is_file():
        raise ImageError(f"{readable(path)}: no such file or folder of images")
    return _of_files([path], column)


def _of_files(files: Sequence[Path], column: str) -> ImageTable:
    """Image files and Parquet files, in the order given."""
    tables: list[ImageTable] = []
    for in_parquet, group in groupby(files, lambda file: file.suffix.lower() == ".parquet"):
        together = list(group)
        if in_parquet:
            tables += [ParquetTable(file, {"image": column}, whole=True) for file in together]
        else:
            tables.append(FilesTable(together[0].parent, [{"image": file} for file in together]))
    return JoinedTable(tables) if len(tables) > 1 else tables[0] if tables else FilesTable(Path(), [])


def sizes_hash(store: ImageTable) -> str:
    """SHA-256 of the size of every image: what a run remembers of its data without reading it."""
    digest = hashlib.sha256()
    for size in store.image_sizes():
        digest.update(f"{size}\0".encode())
    return digest.hexdigest()


def square_pixels(
    store: ImageTable, number: int, size: int, view: Callable[[Image.Image], Image.Image] | None = None
) -> np.ndarray:
    """Image `number` as a square at its centre, or at that of what `view` makes of it: uint8 [size, size, 3].

    Raises:
        ImageError: it cannot be read, or shows nothing; names it.
    """
    image = decode_image(store.image(number), store.name(number))
    if min(image.size) < 2:
        raise ImageError(f"{store.name(number)}: {image.size[0]} x {image.size[1]} pixels show nothing")
    return np.asarray(resize_and_crop(view(image) if view else image, size))
