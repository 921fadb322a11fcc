"""Small stores of word images in every layout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pipeline.words.stores import LmdbWriter

LABELS = ["Hello", "world", "Café-9", "2026", "It's"]


def picture(number: int) -> bytes:
    """A PNG, another one for every number."""
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12 + number, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_lmdb(path: Path, labels: Sequence[str] = LABELS) -> Path:
    with LmdbWriter(path) as writer:
        for number, label in enumerate(labels):
            writer.add(picture(number), label)
    return path


def write_parquet(path: Path, labels: Sequence[str] = LABELS, images: Sequence[bytes] | None = None) -> Path:
    contents = images or [picture(number) for number in range(len(labels))]
    struct = pa.array([{"bytes": content, "path": None} for content in contents])
    pq.write_table(pa.table({"text": list(labels), "image": struct}), path)
    return path


def write_folder(path: Path, labels: Sequence[str] = LABELS, name: str = "labels.txt") -> Path:
    path.mkdir()
    separator = "," if name.endswith(".csv") else "\t"
    for number in range(len(labels)):
        (path / f"{number}.png").write_bytes(picture(number))
    lines = [f"{number}.png{separator}{label}\n" for number, label in enumerate(labels)]
    (path / name).write_text("".join(lines), encoding="utf-8")
    return path
