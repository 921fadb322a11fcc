"""Image bytes from anywhere to RGB pixels or class numbers; what is broken, disguised or too large is refused.

Here, and not in the data pipeline, because visual tokenizers are fitted to image files as text tokenizers are to text.
"""

from __future__ import annotations

import io
import struct
import sys
import warnings
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import InputError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Told by the content, whatever a file's name says. None of them runs code or reads other files."""
MAX_PIXELS = 64_000_000
"""Larger images are refused by their header, before a pixel is decoded."""

ORIENTATION = 0x0112
"""The EXIF tag."""
OTHER_ORDER = {
    "16B": "16L",
    "16L": "16B",
    "16N": "16B" if sys.byteorder == "little" else "16L",
}
"""Pillow's names for the order of the two bytes of a value."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each orientation upright."""


class ImageError(InputError, ValueError):
    """An image, or a file or folder of images, that cannot be read: missing, truncated, not an image, too large, or of
    a kind that is not accepted."""


def decode_image(content: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame as 8-bit RGB, upright. Transparency is laid over white, more bits become 8 (`_eight_bits`).

    Raises:
        ImageError: naming `where`.
    """
    image = _open(content, where, max_pixels)
    try:
        return _to_rgb(image)
    except ValueError as error:  # a colour space that Pillow cannot turn into RGB
        raise ImageError(f"{where}: mode {image.mode} cannot be turned into RGB ({error}); store it as RGB") from None


def decode_class_indices(content: bytes, where: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture of class numbers: grey levels of 1, 8 or 16 bits, or the indices of a palette, as int64 [H, W].

    Raises:
        ImageError: naming `where`; also for colours, from which no number can be told.
    """
    image = _open(content, where, max_pixels)
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise ImageError(
            f"{where}: expected one class number per pixel (grey levels or a palette), found mode {image.mode}"
        )
    return np.asarray(image).astype(np.int64)


def resize_and_crop(
    image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """Short side to `size`, then the square at the centre: torchvision's Resize and CenterCrop."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((size * width // short, size * height // short), resample)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _open(content: bytes, where: str, max_pixels: int) -> Image.Image:
    if not content:
        raise ImageError(f"{where}: the image holds no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, higher limit of size
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{where}: {width:,} x {height:,} pixels, more than {max_pixels:,}; scale it down")
            tiles = list(image.tile)
            image.load()
            turn = _turn_of(image)
            image = _with_lower_half(image, tiles, content)
    except UnidentifiedImageError:
        raise ImageError(f"{where}: not an image of a known kind ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{where}: many more pixels than {max_pixels:,}; scale it down") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for damaged files
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{where}: damaged image ({error})") from None
    return image if turn is None else image.transpose(turn)


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """What brings the image upright, as viewers show it, by its EXIF data. Damaged EXIF data say nothing."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, struct.error):
        return None
    return TURNS.get(orientation) if isinstance(orientation, int) else None


def _with_lower_half(image: Image.Image, tiles: list[Any], content: bytes) -> Image.Image:
    """A colour image of 16 bits a channel that would be nearly black by its upper halves, by both halves.

    Pillow keeps the upper byte of each value. Told that the bytes come in the other order, it keeps the lower one.

    Raises:
        ValueError: Pillow cannot read this kind of colour in the other order.
    """
    modes = {tile[3][0] if isinstance(tile[3], tuple) else tile[3] for tile in tiles}  # Pillow 10 has plain tuples
    mode = next(iter(modes), "") if len(modes) == 1 else ""
    if not isinstance(mode, str) or image.mode not in ("RGB", "RGBA") or mode[-3:] not in OTHER_ORDER:
        return image
    upper_HWC = np.asarray(image).astype(np.uint16)
    if upper_HWC.max(initial=0) >= 16:
        return image
    other = mode[:-3] + OTHER_ORDER[mode[-3:]]
    lower = Image.open(io.BytesIO(content), formats=FORMATS)
    lower.tile = [(*tile[:3], (other, *tile[3][1:]) if isinstance(tile[3], tuple) else other) for tile in tiles]
    try:
        lower.load()
    except ValueError as error:
        raise ValueError(f"16 bits a channel with values of 8 in mode {mode}; store it with 8 bits") from error
    return Image.fromarray(_eight_bits(256 * upper_HWC + np.asarray(lower)), image.mode)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey levels, or colours, as uint8 of the same shape.

    The largest value says how many bits are meant, because files do not: up to 255 the 8 that are often stored in 16,
    up to 4,095 the 12 of many cameras and scanners, else 16 (or 32), of which the upper 8 are kept. Fractions up to 1
    are shares of white.
    """
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    largest = float(values.max(initial=0))
    if largest <= 1 and (values % 1).any():
        scale = 255.0
    else:
        bits = next((bits for bits in (8, 12, 16) if largest < 2**bits), 32)
        scale = 2.0 ** (8 - bits)
    return (values * scale).clip(0, 255).astype(np.uint8)
