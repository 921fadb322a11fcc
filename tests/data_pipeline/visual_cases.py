"""Small pictures, stores of them in every layout, and broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def photograph(number: int, size: tuple[int, int] = (24, 36)) -> np.ndarray:
    """Random pixels, other ones for every number: uint8 [H, W, 3]."""
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def classes(number: int, size: tuple[int, int] = (24, 36)) -> np.ndarray:
    """Random class numbers 0 to 11 in blocks of 4 x 4 pixels: uint8 [H, W]."""
    blocks = np.random.default_rng([1, number]).integers(0, 12, (size[0] // 4, size[1] // 4), dtype=np.uint8)
    return np.kron(blocks, np.ones((4, 4), np.uint8))


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    """An image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; it holds no such pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def write_table(path: Path, row_group_size: int = 3, **columns: Sequence[object]) -> Path:
    """A Parquet file of encoded images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path, row_group_size)
    return path


def write_photographs(path: Path, count: int = 7, first: int = 0) -> Path:
    """A Parquet file of photographs with the labels of their pixels."""
    numbers = range(first, first + count)
    return write_table(
        path,
        image=[encoded(photograph(number)) for number in numbers],
        label=[encoded(classes(number)) for number in numbers],
    )


def write_folder(path: Path, pictures: Sequence[bytes]) -> Path:
    """A folder of image files in order."""
    path.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(pictures):
        (path / f"{number:03d}.png").write_bytes(content)
    return path
