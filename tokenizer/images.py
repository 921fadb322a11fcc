"""Image bytes from anywhere to RGB pixels or class numbers; what is broken, disguised or too large is refused.

Here, and not in the data pipeline, because visual tokenizers are fitted to image files as text tokenizers are to text.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Told by the content, whatever a file's name says. None of them runs code or reads other files."""
MAX_PIXELS = 64_000_000
"""Larger images are refused by their header, before a pixel is decoded."""


class ImageError(ValueError):
    """An image, or a file or folder of images, that cannot be read: missing, truncated, not an image, too large, or of
    a kind that is not accepted."""


def decode_image(content: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame as 8-bit RGB. Transparency is laid over white, 16-bit values keep their upper half.

    Raises:
        ImageError: naming `where`.
    """
    return _to_rgb(_open(content, where, max_pixels))


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
    """Short side to `size`, then the square at the centre: torchvision's Resize and CenterCrop (spec 2.1)."""
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
            image.load()
    except UnidentifiedImageError:
        raise ImageError(f"{where}: not an image of a known kind ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{where}: many more pixels than {max_pixels:,}; scale it down") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for damaged files
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{where}: damaged image ({error})") from None
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        scale = 257.0 if values.max() > 255 else 1.0
        return Image.fromarray((values / scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
