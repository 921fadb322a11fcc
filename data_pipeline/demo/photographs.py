"""Square crops of photographs, split into training and held-out ones by photograph.

    OUTPUT/train/*.png  valid/*.png      NUMBER-NAME-CROP.png, crops of `size` x `size` pixels
    OUTPUT/images.json                   photographs of each side, what was left out

All crops of a photograph are on one side, and a photograph that is there twice counts once. The held-out photographs
are the first in the order of a keyed hash of their content, so that even of three photographs one is held out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_pipeline.demo.keyed_split import keyed_hash
from data_pipeline.demo.photographs_builtin import builtin_photographs
from data_pipeline.errors import SourceError
from tokenizer.inputs.image_stores import open_images
from tokenizer.inputs.image_table import ImageTable
from tokenizer.inputs.images import decode_image

RECORD = "images.json"
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class SampleImagesConfig:
    """What `python -m data_pipeline sample-images` makes."""

    output: str
    """Folder to write to; what an earlier call made there is replaced."""
    images: list[str] = field(default_factory=list)
    """Photographs: files, folders of them, .parquet files. Without any: those that installed packages carry."""
    column: str = "image"
    """Column of .parquet files."""
    size: int = 96
    """Pixels of a crop's side."""
    crops: int = 64
    """Crops of each photograph."""
    smallest: float = 0.25
    """Side of the smallest crop, as a share of the photograph's short side (but never below `size` pixels)."""
    valid_fraction: float = 0.25
    """Share of the photographs that is held out; at least one is, and at least one is not."""
    seed: int = 3
    """Of the split and of the crops. The default holds out astronaut, coffee and flower of the built-in photographs."""

    def __post_init__(self) -> None:
        for name in ("size", "crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"smallest: must be above 0 and at most 1, got {self.smallest}")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"valid_fraction: must be between 0 and 1, got {self.valid_fraction}")


def sample_images(config: SampleImagesConfig) -> str:
    """Writes the crops, and says which photographs are on which side.

    Raises:
        SourceError: no two photographs that are large enough, or an output folder that holds something else.
        ImageError: a photograph is damaged; names it.
    """
    output = Path(config.output)
    if output.exists() and any(output.iterdir()) and not (output / RECORD).is_file():
        raise SourceError(f"{output}: holds something else than crops of photographs; choose another folder")
    store = open_images(config.images or list(builtin_photographs()), config.column)
    distinct = {keyed_hash(store.image(number), config.seed): number for number in reversed(range(len(store)))}
    large, small = _by_size(store, distinct, config.size)
    if len(large) < 2:
        shown = f"; {', '.join(small[:3])}" if small else ""
        raise SourceError(
            f"{', '.join(config.images)}: {len(large)} photographs of at least {config.size} x {config.size} pixels,"
            f" two are needed, one to learn from and one to test on (lower --size?){shown}"
        )
    held_out = min(max(1, round(config.valid_fraction * len(large))), len(large) - 1)
    sides = {key: "valid" if rank < held_out else "train" for rank, key in enumerate(sorted(large))}
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".sample-") as folder:
        for split in SPLITS:
            (Path(folder) / split).mkdir()
        for number, key in tqdm(sorted((large[key], key) for key in large), desc="crop", unit="photograph"):
            image = decode_image(store.image(number), store.name(number))
            name = f"{number:05d}-{Path(store.name(number)).stem}"
            rng = np.random.default_rng([config.seed, key])
            for crop in range(config.crops):
                path = Path(folder) / sides[key] / f"{name}-{crop:03d}.png"
                random_crop(image, config, rng).save(path)
        _replace(output, Path(folder))
    photographs = {
        split: [store.name(large[key]) for key in sorted(large, key=large.__getitem__) if sides[key] == split]
        for split in SPLITS
    }
    left_out = {"repeated": len(store) - len(distinct), "too small": small}
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    content = {"photographs": photographs, "left_out": left_out, "config": settings}
    (output / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"{output}: {config.crops} crops of {config.size} x {config.size} pixels of each photograph"]
    for split, names in photographs.items():
        more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
        lines.append(f"  {split}: {', '.join(Path(name).stem for name in names[:12])}{more}")
    if left_out["repeated"]:
        lines.append(f"  left out: {left_out['repeated']:,} that repeat another")
    if small:
        lines.append(f"  left out: {len(small):,} that are too small: {'; '.join(small[:3])}")
    return "\n".join(lines)


def _by_size(store: ImageTable, numbers: dict[int, int], size: int) -> tuple[dict[int, int], list[str]]:
    """The photographs that a crop fits in, and a sentence about each of the others."""
    large, small = {}, []
    for key, number in numbers.items():
        width, height = decode_image(store.image(number), store.name(number)).size
        if min(width, height) >= size:
            large[key] = number
        else:
            small.append(f"{store.name(number)} has {width} x {height} pixels")
    return large, sorted(small)


def random_crop(image: Image.Image, config: SampleImagesConfig, rng: np.random.Generator) -> Image.Image:
    """A square of random side and place, resized to `size` pixels."""
    short = min(image.size)
    least = max(config.size, round(config.smallest * short))
    side = int(rng.integers(least, short, endpoint=True))
    left, top = (int(rng.integers(0, extent - side, endpoint=True)) for extent in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((config.size, config.size), Image.Resampling.LANCZOS, box)


def _replace(output: Path, made: Path) -> None:
    """Puts the new crops where those of an earlier call are."""
    for split in SPLITS:
        for earlier in (output / split).glob("*.png"):
            earlier.unlink()
        (output / split).mkdir(exist_ok=True)
        for path in (made / split).iterdir():
            path.rename(output / split / path.name)
