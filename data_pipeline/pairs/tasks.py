"""The images of a record: what each task makes of a photograph, and how annotations are drawn as images.

    segmentation    photograph -> classes or masks in colours        denoising    photograph + noise -> photograph
    edges           photograph -> edges, white on black              deraining    photograph + rain -> photograph
    colourisation   grey photograph -> photograph                    inversion    photograph -> its negative

Shapes: H, W pixels, S of a finished image's side, M masks, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from data_pipeline.errors import NoMasksError, PairError
from data_pipeline.pairs.corruption import Corruption, add_noise, add_rain

Task = Literal[
    "segmentation",
    "edges",
    "colourisation",
    "denoising",
    "deraining",
    "inversion",
    "single",
    "sequence",
    "files",
]

CAMVID_CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
    "void": (0, 0, 0),
}
"""The eleven classes of CamVid in SegNet's order and colours, and void, which is number 11 and black."""
CAMVID_PALETTE = np.array(list(CAMVID_CLASSES.values()), dtype=np.uint8)
"""uint8 [12, 3]: the colour of each class number."""

EDGE_BLUR = 1.0
"""Standard deviation, in pixels, of the blur before the edge filter."""


def colour_classes(class_HW: np.ndarray, palette_C3: np.ndarray, where: str) -> np.ndarray:
    """Class numbers drawn in their colours: uint8 [H, W, 3].

    Raises:
        PairError: a number without a colour.
    """
    if class_HW.size and not 0 <= int(class_HW.min()) <= int(class_HW.max()) < len(palette_C3):
        raise PairError(
            f"{where}: class numbers must lie in 0 to {len(palette_C3) - 1}, found {class_HW.min()} to {class_HW.max()}"
        )
    return palette_C3[class_HW]


def render_masks(masks: Sequence[np.ndarray], colours_M3: np.ndarray, where: str) -> np.ndarray:
    """Boolean masks [H, W] painted on black from the largest to the smallest: uint8 [H, W, 3].

    A pixel in several masks so has the colour of the smallest (the release adds colours, which wrap
    around). Masks of equal size are painted in their order.

    Raises:
        NoMasksError: there is none.
        PairError: they differ in size.
    """
    if not masks:
        raise NoMasksError(f"{where}: no masks")
    if sizes := {mask.shape for mask in masks} - {masks[0].shape}:
        raise PairError(f"{where}: masks of {_size(masks[0].shape)} and of {_size(sizes.pop())} pixels")
    canvas_HW3 = np.zeros((*masks[0].shape, 3), np.uint8)
    for number in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        canvas_HW3[masks[number]] = colours_M3[number]
    return canvas_HW3


def mask_colours(count: int, rng: np.random.Generator) -> np.ndarray:
    """Random colours, none of them near black: uint8 [M, 3]."""
    return rng.integers(64, 256, (count, 3), dtype=np.uint8)


def check_sizes(shapes: Sequence[tuple[int, ...]], where: str) -> None:
    """Raise PairError unless all images of a record have one size: a window would show other parts of each."""
    for shape in shapes[1:]:
        if shape[:2] != shapes[0][:2]:
            raise PairError(
                f"{where}: the images of one record have {_size(shapes[0])} and {_size(shape)} pixels; scale them alike"
            )


def edges(image: np.ndarray, gain: float) -> np.ndarray:
    """Sobel magnitude of the blurred grey image, times `gain`: white edges on black, uint8 [S, S, 3]."""
    from skimage.color import rgb2gray
    from skimage.filters import gaussian, sobel

    magnitude_SS = sobel(gaussian(rgb2gray(image), EDGE_BLUR))  # in [0, 1]
    grey_SS = (255 * gain * magnitude_SS).round().clip(0, 255).astype(np.uint8)
    return np.repeat(grey_SS[:, :, None], 3, axis=2)


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance in all three channels: uint8 [S, S, 3]."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


Make = Callable[[np.ndarray, float, Corruption, np.random.Generator], list[np.ndarray]]

FROM_PHOTOGRAPH: dict[str, Make] = {
    "edges": lambda image, gain, corruption, rng: [image, edges(image, gain)],
    "colourisation": lambda image, gain, corruption, rng: [grey(image), image],
    "denoising": lambda image, gain, corruption, rng: [add_noise(image, corruption, rng), image],
    "deraining": lambda image, gain, corruption, rng: [add_rain(image, corruption, rng), image],
    "inversion": lambda image, gain, corruption, rng: [image, 255 - image],
}
"""Tasks that need nothing but photographs: finished photograph uint8 [S, S, 3], gain of the edges, corruption and
generator -> [input, target]."""


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
