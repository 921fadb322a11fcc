"""`pairs`: the first records of a task on one sheet, to look at before a data set is encoded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.pairs.pairs import PairsConfig, PairSet

GAP = 4
"""Pixels between records."""


@dataclass(frozen=True)
class PairsSheetConfig:
    """Draws the first records of a task as a contact sheet."""

    input: list[str]
    """Parquet files, image files or folders."""
    pairs: PairsConfig
    """How they become records, such as --pairs.task edges; --pairs.help lists the rest."""
    output: str
    """PNG file."""
    image_size: int = 128
    """Pixels of an image's side."""
    records: int = 32
    """Records to draw."""
    columns: int = 4
    """Records in a line."""

    def __post_init__(self) -> None:
        for name in ("image_size", "records", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")


def draw_sheet(config: PairsSheetConfig) -> str:
    """Writes the sheet, and says what is on it: input first, records in lines.

    Raises what `PairSet` raises.
    """
    pairs = PairSet(config.pairs, config.input, config.image_size)
    count = min(config.records, len(pairs))
    tiles = [np.concatenate(pairs.pair(index), axis=1) for index in range(count)]
    padded = [np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for tile in tiles]
    padded += [np.full_like(padded[0], 255)] * (-count % config.columns)
    lines = [np.concatenate(padded[n : n + config.columns], axis=1) for n in range(0, len(padded), config.columns)]
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(lines)).save(config.output, "PNG")
    return (
        f"{config.output}: {count} of {len(pairs):,} records of {config.pairs.images_per_record} images, made of"
        f" {pairs.items:,} rows; the first is {pairs.name(0)}, the last drawn {pairs.name(count - 1)}"
    )
