"""Photographs for the backgrounds of drawn words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pipeline.errors import SourceError
from data_pipeline.images import decode_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SMALLEST = 64


def read_photographs(entries: Sequence[str]) -> list[Image.Image]:
    """The images of files, folders (not of folders in them) and .parquet files with a column `image`, in that order.

    Raises:
        SourceError: an entry is missing, or holds no image of at least 64 x 64 pixels.
        ImageError: an image is damaged.
    """
    found = [image for entry in entries for image in _read_entry(Path(entry))]
    usable = [image for image in found if min(image.size) >= SMALLEST]
    if entries and not usable:
        raise SourceError(f"{', '.join(entries)}: no photograph of at least {SMALLEST} x {SMALLEST} pixels")
    return usable


def _read_entry(path: Path) -> list[Image.Image]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        return [decode_image(file.read_bytes(), str(file)) for file in files]
    if not path.is_file():
        raise SourceError(f"{path}: no such photographs")
    if path.suffix != ".parquet":
        return [decode_image(path.read_bytes(), str(path))]
    try:
        images = pq.read_table(path, columns=["image"]).column("image").to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: no Parquet file with a column 'image' ({error})") from None
    contents = (image["bytes"] if isinstance(image, dict) else image for image in images)
    return [decode_image(content, f"{path}: row {row}") for row, content in enumerate(contents)]
