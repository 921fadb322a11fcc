"""Square windows of a picture, and the one cut that all images of a record share (docs/methods/delvm.md: augmentation).

    centre       the largest square in the middle                      six_crop   +---+---+---+
    random       a square of 0.5 to 1 of the short side, anywhere,                | 1 | 2 | 3 |  3 along the long side,
                 perhaps mirrored                                                 | 4 | 5 | 6 |  2 along the short one
                                                                                  +---+---+---+  (they overlap)

A window is drawn once per record and then applied to input and target alike, so they cannot drift apart. Photographs
are scaled with antialiased bilinear weights; drawings by the nearest pixel, so that no new colour appears.

Shapes: H, W pixels of a picture, S of a finished image's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Picture:
    """An image before it is cut."""

    pixels: np.ndarray
    """uint8 [H, W, 3]."""
    drawn: bool = False
    """A drawing with a palette, such as a label, rather than a photograph."""


@dataclass(frozen=True)
class Window:
    """A square of a picture."""

    top: int
    """First row."""
    left: int
    """First column."""
    side: int
    """Rows and columns."""
    flip: bool = False
    """Mirror it, left to right."""


def centre(height: int, width: int) -> Window:
    """The largest square in the middle."""
    side = min(height, width)
    return Window((height - side) // 2, (width - side) // 2, side)


def six_crop(height: int, width: int, share: float) -> list[Window]:
    """Six squares of `share` of the short side, in reading order: three along the long side, two along the short one.

    The outer ones touch the corners exactly, the middle ones lie halfway: two rows of three, or three rows of
    two where the picture is taller than wide.
    """
    side = max(1, round(share * min(height, width)))
    down, right = height - side, width - side
    tops, lefts = ([0, down], [0, right // 2, right]) if width >= height else ([0, down // 2, down], [0, right])
    return [Window(top, left, side) for top in tops for left in lefts]


def random_window(height: int, width: int, smallest: float, flip: float, rng: np.random.Generator) -> Window:
    """A square of `smallest` to 1 of the short side, anywhere, mirrored with probability `flip`."""
    side = max(1, round(rng.uniform(smallest, 1) * min(height, width)))
    top, left = rng.integers(0, [height - side + 1, width - side + 1]).tolist()
    return Window(top, left, side, bool(rng.random() < flip))


def cut(pictures: Sequence[Picture], window: Window, size: int) -> list[np.ndarray]:
    """The window of every picture, scaled to S = `size`: uint8 [S, S, 3] each."""
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    images = []
    for picture in pictures:
        image = tv_tensors.Image(torch.from_numpy(np.array(picture.pixels)).permute(2, 0, 1))
        image = functional.resized_crop(
            image,
            *(window.top, window.left, window.side, window.side),
            size=[size, size],
            interpolation=InterpolationMode.NEAREST_EXACT if picture.drawn else InterpolationMode.BILINEAR,
            antialias=not picture.drawn,
        )
        image = functional.horizontal_flip(image) if window.flip else image
        images.append(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    return images
