"""The records of a visual task as PNG files, to look at, and to train a visual tokenizer on (spec delvm.md, 9.2).

OUTPUT/RECORD-IMAGE.png     image 0 is the input, image 1 the answer; frames of a sequence in their order
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_pipeline.errors import PairsError
from data_pipeline.visual_pairs import PairsConfig, PairSet


@dataclass(frozen=True)
class DrawPairsConfig:
    """What `python -m data_pipeline draw-pairs` makes."""

    input: list[str]
    """Parquet files, image files or folders, as `prepare` takes them."""
    output: str
    """Folder for the files; it must be new or empty."""
    pairs: PairsConfig = field(default_factory=lambda: PairsConfig(task="single"))
    """How images become records."""
    image_size: int = 64
    """Pixels of an image's side."""
    limit: int | None = None
    """Records to draw, the first ones; None draws all."""

    def __post_init__(self) -> None:
        for name in ("image_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")


def draw_pairs(config: DrawPairsConfig) -> str:
    """Writes the files, and says how many.

    Raises:
        PairsError: the inputs do not suit the task, or the output folder holds files.
        ImageError: an image cannot be read.
    """
    output = Path(config.output)
    if output.exists() and any(output.iterdir()):
        raise PairsError(f"{output}: holds files already; choose another folder or remove it")
    pairs = PairSet(config.pairs, config.input, config.image_size)
    count = len(pairs) if config.limit is None else min(config.limit, len(pairs))
    output.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(count), desc=f"draw {config.pairs.task}", unit="record"):
        for place, pixels in enumerate(pairs.pair(number)):
            Image.fromarray(pixels).save(output / f"{number:06d}-{place}.png")
    return f"{output}: {count:,} records of {config.pairs.task}, {config.image_size} x {config.image_size} pixels"
