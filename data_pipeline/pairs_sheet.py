"""`pairs`: the first records of a task on one sheet, to look at before a data set is encoded, or each image in a file.

A visual tokenizer is trained on the files: answers such as edge maps have patches that no photograph has (spec
delvm.md, section 9.2).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_pipeline.errors import PairsError
from data_pipeline.visual_pairs import PairsConfig, PairSet

GAP = 4
"""Pixels between records."""


@dataclass(frozen=True)
class PairsSheetConfig:
    """Draws the first records of a task as a contact sheet, or into files."""

    input: list[str]
    """Parquet files, image files or folders."""
    pairs: PairsConfig
    """How they become records, such as --pairs.task edges; --pairs.help lists the rest."""
    output: str
    """PNG file for a sheet; any other name: a new folder for RECORD-IMAGE.png, image 0 the input, 1 the answer."""
    image_size: int = 128
    """Pixels of an image's side."""
    records: int = 32
    """Records to draw; where there are fewer, all."""
    columns: int = 4
    """Records in a line of the sheet."""

    def __post_init__(self) -> None:
        for name in ("image_size", "records", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")

    @property
    def is_sheet(self) -> bool:
        """Whether a sheet is asked for, not files."""
        return Path(self.output).suffix.lower() == ".png"


def draw_files(config: PairsSheetConfig) -> str:
    """Writes the images of every record, and says how many.

    Raises:
        PairsError: the output folder holds files already; and what `PairSet` raises.
    """
    folder = Path(config.output)
    if folder.exists() and any(folder.iterdir()):
        raise PairsError(f"{folder}: holds files already; choose another folder or remove it")
    pairs = PairSet(config.pairs, config.input, config.image_size)
    count = min(config.records, len(pairs))
    folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(count), desc=f"draw {config.pairs.task}", unit="record"):
        for place, pixels in enumerate(pairs.pair(index)):
            Image.fromarray(pixels).save(folder / f"{index:06d}-{place}.png")
    return f"{folder}: {count:,} of {len(pairs):,} records of {config.pairs.images_per_record} images"


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
