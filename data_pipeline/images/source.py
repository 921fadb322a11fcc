"""`ImageSource`: square images as training samples.

    image   uint8 [3, S, S]

Augmented, the source holds every image several times: copy c of image i is sample c * images + i, each copy with a
random square crop and flip of its own. So a sample is still a pure function of its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.errors import SourceError
from data_pipeline.source import DocumentSpan, Sample
from tokenizer.inputs.image_stores import open_images, sizes_hash, square_pixels
from tokenizer.inputs.image_table import ImageTable

SMALLEST_CROP = 0.5
"""Side of the smallest random crop, as a share of the image's short side (docs/methods/delvm.md: augmentation)."""


class ImageSource:
    """Images of one or several stores.

    Args:
        images: a store, or what `open_images` opens.
        size: S.
        copies: augmented copies of each image; 0: every image once, resized and cropped at its centre.
        seed: of the augmentation.
        column: of Parquet files.

    Raises:
        ImageError: an entry is missing or holds no image.
    """

    def __init__(
        self,
        images: ImageTable | str | Path | Sequence[str | Path],
        size: int,
        copies: int = 0,
        seed: int = 0,
        column: str = "image",
    ) -> None:
        self.store = open_images(images, column) if isinstance(images, (str, Path, Sequence)) else images
        self.size, self.copies, self.seed = size, copies, seed
        self._hash = sizes_hash(self.store)

    @property
    def images(self) -> int:
        """Images, each counted once."""
        return len(self.store)

    def __len__(self) -> int:
        return self.images * max(1, self.copies)

    def sample(self, index: int) -> Sample:
        """Sample `index`. Raises `SourceError` when out of range, `ImageError` when its image cannot be read."""
        return {"image": np.ascontiguousarray(self.pixels(index).transpose(2, 0, 1))}

    def pixels(self, index: int) -> np.ndarray:
        """The image of sample `index` as it is looked at: uint8 [S, S, 3]. Raises as `sample` does."""
        if not 0 <= index < len(self):
            raise SourceError(f"image {index} asked for, but there are {len(self)}")
        number = index % self.images
        view = partial(random_view, rng=np.random.default_rng([self.seed, index])) if self.copies else None
        return square_pixels(self.store, number, self.size, view)

    def documents(self, index: int) -> list[DocumentSpan]:
        """One image is one document."""
        number = index % self.images
        return [DocumentSpan(self.store.name(number), number, 0, 1, 0)]

    def identity(self) -> dict[str, Any]:
        """What the samples depend on."""
        return {
            "kind": "images",
            "content": self._hash,
            "size": self.size,
            "copies": self.copies,
            "seed": self.seed,
        }


def random_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square crop of half to all of the short side, at a random place, flipped half of the time."""
    short = min(image.size)
    side = int(rng.integers(max(2, round(SMALLEST_CROP * short)), short, endpoint=True))
    left = int(rng.integers(0, image.width - side, endpoint=True))
    top = int(rng.integers(0, image.height - side, endpoint=True))
    view = image.crop((left, top, left + side, top + side))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view
