"""RandAugment for word images: three different operations of sixteen, each applied with probability one half.

The operations and their strengths are those of PARSeq's training (docs/methods/ocr.md: images): timm's, but for three:
rotation grows the canvas so that no character is cut off, and blur and Poisson noise are of other strengths. No
sharpness. Random numbers come from the generator that is handed in, and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np
from PIL import Image, ImageFilter

OPERATIONS_PER_IMAGE = 3
PROBABILITY = 0.5
MAGNITUDE = 5
"""Of 10."""

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


@cache
def timm_operations() -> ModuleType:
    """timm's, imported when first needed: with torch and torchvision it takes seconds that every command would pay."""
    from timm.data import auto_augment

    return auto_augment


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _rotate(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return image.rotate(_signed(30 * level, rng), Image.Resampling.BICUBIC, expand=True)


def _blur(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    radius = round(min(4 * level, max(1.0, 0.02 * max(image.size))))
    return image.filter(ImageFilter.GaussianBlur(radius))


def _poisson_noise(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    noise = rng.poisson(40 * level, pixels.shape) * rng.choice([-1, 1], pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _timm(name: str, image: Image.Image, *strength: float) -> Image.Image:
    return getattr(timm_operations(), name)(image, *strength)


def _enhanced(name: str) -> Operation:
    return lambda image, level, rng: _timm(name, image, max(0.1, 1 + _signed(0.9 * level, rng)))


def _moved(name: str, largest: float) -> Operation:
    return lambda image, level, rng: _timm(name, image, _signed(largest * level, rng))


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, rng: _timm("auto_contrast", image),
    "Equalize": lambda image, level, rng: _timm("equalize", image),
    "Invert": lambda image, level, rng: _timm("invert", image),
    "Rotate": _rotate,
    "Posterize": lambda image, level, rng: _timm("posterize", image, 4 - int(4 * level)),
    "Solarize": lambda image, level, rng: _timm("solarize", image, 256 - int(256 * level)),
    "SolarizeAdd": lambda image, level, rng: _timm("solarize_add", image, int(110 * level)),
    "Color": _enhanced("color"),
    "Contrast": _enhanced("contrast"),
    "Brightness": _enhanced("brightness"),
    "ShearX": _moved("shear_x", 0.9),
    "ShearY": _moved("shear_y", 0.2),
    "TranslateXRel": _moved("translate_x_rel", 0.1),
    "TranslateYRel": _moved("translate_y_rel", 0.3),
    "GaussianBlur": _blur,
    "PoissonNoise": _poisson_noise,
}
"""By name; `level` is the magnitude as a share of its maximum."""


def augment_word(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A changed copy of an RGB image; the same generator state gives the same pixels."""
    names = rng.choice(list(OPERATIONS), OPERATIONS_PER_IMAGE, replace=False)
    for name in names.tolist():
        if rng.random() < PROBABILITY:
            image = OPERATIONS[name](image, MAGNITUDE / 10, rng)
    return image
