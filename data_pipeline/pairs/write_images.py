"""`pair-images`: the images of records as one Parquet file, for a visual tokenizer to be fitted on.

A tokenizer must know the targets of every task as well as the photographs, and it reads images, not tasks. The file
has a row per image, in the order of the records: `image` (PNG bytes), `record`, `place` (0 the input, 1 the target).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from common.atomic_files import appearing
from data_pipeline.errors import PairsError
from data_pipeline.pairs.pairs import PairsConfig, PairSet
from data_pipeline.permutation import permute

SCHEMA = pa.schema({"image": pa.binary(), "record": pa.int64(), "place": pa.int64()})


@dataclass(frozen=True)
class PairImagesConfig:
    """Writes the images that a task makes of photographs, as a visual tokenizer will see them."""

    input: list[str]
    """Parquet files, image files or folders."""
    output: str
    """Parquet file to write."""
    pairs: PairsConfig
    """Which task, views and copies."""
    image_size: int = 64
    """Pixels of a side."""
    limit: int | None = None
    """Records, drawn once; None: all."""

    def __post_init__(self) -> None:
        if self.image_size < 1 or (self.limit is not None and self.limit < 1):
            raise PairsError("image_size and limit: expected at least 1")


def write_pair_images(config: PairImagesConfig) -> int:
    """Writes the file, in one step, and returns the number of images.

    Raises:
        PairsError, PairError, ImageError: naming the input or the row at fault.
    """
    found = PairSet(config.pairs, config.input, config.image_size)
    count = len(found) if config.limit is None else min(config.limit, len(found))
    # In order: the set decodes a photograph once for all of its records.
    chosen = np.sort(permute(np.arange(count), len(found), 0))
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for record in tqdm(chosen.tolist(), desc="pairs", unit="record"):
        for place, pixels in enumerate(found.pair(record)):
            columns["image"].append(_png(pixels))
            columns["record"].append(record)
            columns["place"].append(place)
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as temporary:
        pq.write_table(pa.table(columns, SCHEMA), temporary)
    return len(columns["image"])


def run(config: PairImagesConfig) -> str:
    """Writes the file; returns what is said at the end."""
    return f"{config.output}: {write_pair_images(config):,} images"


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
