"""Images for tests of visual tokenizers: smooth colours with edges, drawn from a seed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def draw_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Colour gradients with a rectangle on each: uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, size)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for image in images:
        corners = rng.uniform(0, 255, (2, 2, 3))
        rows = np.outer(1 - ramp, np.ones(3))[:, None] * corners[0, :1] + ramp[:, None, None] * corners[1, :1]
        image[:] = (0.5 * rows + 0.5 * (ramp[None, :, None] * corners[1, 1])).astype(np.uint8)
        top, left = rng.integers(0, size - 4, 2)
        image[top : top + size // 3, left : left + size // 2] = rng.integers(0, 256, 3)
    return images


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, images: Sequence[bytes]) -> Path:
    """A file with columns id and image, as image sets have them."""
    names = [str(number) for number in range(len(images))]
    pq.write_table(pa.table({"id": names, "image": pa.array(list(images), pa.binary())}), path)
    return path
