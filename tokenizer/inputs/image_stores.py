"""Where images without labels lie: a folder of image files, one image file, or a column of a Parquet file.

A store is numbered and read-only and gives encoded bytes, which `images.decode_image` turns into pixels.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from common.folder_files import UnusedFilesError, check_link, find_files, readable
from tokenizer.inputs.images import ImageError, decode_image, resize_and_crop

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of image files, in any case."""


class ImageStore(Protocol):
    """Encoded images."""

    def __len__(self) -> int:
        """How many."""

    def name(self, index: int) -> str:
        """Where image `index` lies, for messages."""

    def image(self, index: int) -> bytes:
        """The encoded image `index`."""

    def image_sizes(self) -> Iterator[int]:
        """Bytes of every image, without reading them."""


def open_images(paths: str | Path | Sequence[str | Path], column: str = "image") -> ImageStore:
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
    return stores[0] if len(stores) == 1 else ConcatenatedImages(stores)


def _open(path: Path, column: str) -> ImageStore:
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


def _of_files(files: Sequence[Path], column: str) -> ImageStore:
    """Image files and Parquet files, in the order given."""
    stores: list[ImageStore] = []
    for is_table, group in groupby(files, lambda file: file.suffix.lower() == ".parquet"):
        together = list(group)
        stores += [ParquetImages(file, column) for file in together] if is_table else [FileImages(together)]
    return ConcatenatedImages(stores) if len(stores) > 1 else stores[0] if stores else FileImages([])


def sizes_hash(store: ImageStore) -> str:
    """SHA-256 of the size of every image: what a run remembers of its data without reading it."""
    digest = hashlib.sha256()
    for size in store.image_sizes():
        digest.update(f"{size}\0".encode())
    return digest.hexdigest()


def square_pixels(
    store: ImageStore, number: int, size: int, view: Callable[[Image.Image], Image.Image] | None = None
) -> np.ndarray:
    """Image `number` as a square at its centre, or at that of what `view` makes of it: uint8 [size, size, 3].

    Raises:
        ImageError: it cannot be read, or shows nothing; names it.
    """
    image = decode_image(store.image(number), store.name(number))
    if min(image.size) < 2:
        raise ImageError(f"{store.name(number)}: {image.size[0]} x {image.size[1]} pixels show nothing")
    return np.asarray(resize_and_crop(view(image) if view else image, size))


class FileImages:
    """Image files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return readable(self._files[index])

    def image(self, index: int) -> bytes:
        return self._files[index].read_bytes()

    def image_sizes(self) -> Iterator[int]:
        return (file.stat().st_size for file in self._files)


class ParquetImages:
    """A column of a Parquet file, in memory.

    Raises:
        ImageError: damaged, without the column, or with something else than bytes in it.
    """

    def __init__(self, path: Path, column: str = "image") -> None:
        self.path, self.column = path, column
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            if column not in names:
                raise ImageError(f"{path}: needs a column {column!r}, has {', '.join(names)}")
            images = file.read([column]).column(column).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise ImageError(f"{path}: not a Parquet file that can be read ({error})") from None
        if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
            images = images.field("bytes")
        if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
            raise ImageError(f"{path}: column {column!r} holds {images.type}, not bytes")
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self.path}: row {index}"

    def image(self, index: int) -> bytes:
        content = self._images[index].as_py()
        if not isinstance(content, bytes):
            raise ImageError(f"{self.name(index)}: {self.column!r} is {type(content).__name__}, not bytes")
        return content

    def image_sizes(self) -> Iterator[int]:
        return (size or 0 for size in pc.binary_length(self._images).to_pylist())


class ConcatenatedImages:
    """Several stores, one after the other."""

    def __init__(self, stores: Sequence[ImageStore]) -> None:
        self._stores = list(stores)
        self._stops = list(accumulate(len(store) for store in stores))

    def __len__(self) -> int:
        return self._stops[-1]

    def _locate(self, index: int) -> tuple[ImageStore, int]:
        number = bisect_right(self._stops, index)
        store = self._stores[number]
        return store, index - self._stops[number] + len(store)

    def name(self, index: int) -> str:
        store, inner = self._locate(index)
        return store.name(inner)

    def image(self, index: int) -> bytes:
        store, inner = self._locate(index)
        return store.image(inner)

    def image_sizes(self) -> Iterator[int]:
        return chain.from_iterable(store.image_sizes() for store in self._stores)
