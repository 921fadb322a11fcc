"""Photographs for the backgrounds of drawn words."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from data_pipeline.errors import SourceError
from tokenizer.inputs.image_stores import open_images
from tokenizer.inputs.images import decode_image

SMALLEST = 64


def read_photographs(entries: Sequence[str]) -> list[Image.Image]:
    """The images of files, folders (at any depth) and .parquet files with a column `image`, in that order.

    Raises:
        SourceError: no image of at least 64 x 64 pixels.
        ImageError: an entry is missing or holds no image, or an image is damaged.
    """
    if not entries:
        return []
    store = open_images(entries)
    found = [decode_image(store.image(number), store.name(number)) for number in range(len(store))]
    usable = [image for image in found if min(image.size) >= SMALLEST]
    if not usable:
        raise SourceError(f"{', '.join(entries)}: no photograph of at least {SMALLEST} x {SMALLEST} pixels")
    return usable
