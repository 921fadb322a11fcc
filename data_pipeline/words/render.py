"""Draws one word as a photograph might show it.

    background   a plain colour, a gradient, or a piece of a photograph
    shadow       of the letters, sometimes
    letters      a colour that stands out from the background by at least `MIN_CONTRAST`
    shape        curve, then perspective and rotation, of the letters' mask
    camera       blur, noise, JPEG

Everything is drawn from the generator that is handed in: the same state gives the same pixels (on the same Pillow).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_pipeline.words.fonts import open_font

MIN_CONTRAST = 60.0
"""Smallest difference of brightness between letters and what lies behind them, of 255."""


@dataclass(frozen=True)
class Look:
    """How strongly words are changed; 0 switches a change off."""

    rotation: float = 5.0
    """Degrees, to either side."""
    perspective: float = 0.12
    """Movement of the corners, as a share of the height."""
    curve: float = 0.15
    """Height of the arc, as a share of the height; a third of the words are curved."""
    blur: float = 1.2
    """Largest radius in pixels."""
    noise: float = 12.0
    """Largest standard deviation, of 255."""
    shadow: float = 0.25
    """Share of the words with a shadow."""
    photograph: float = 0.5
    """Share of the words on a photograph, if there are photographs."""
    light: float | None = None
    """Share of the words whose letters are lighter than what lies behind them, as far as that leaves room for contrast;
    none: as the colours fall. Where either is as likely, the mean of an image says nothing about its letters, and small
    models learn to read late."""
    jpeg: float = 0.5
    """Share of the words that are compressed as JPEG, at quality 40 to 95."""

    def __post_init__(self) -> None:
        if self.light is not None and not 0 <= self.light <= 1:
            raise ValueError(f"look.light: must lie between 0 and 1, got {self.light}")


def render_word(
    text: str, font: Path, rng: np.random.Generator, look: Look, photographs: Sequence[Image.Image] = ()
) -> Image.Image:
    """An RGB image of a word, 28 to 56 pixels high, as wide as the word needs."""
    mask = _letters(text, font, int(rng.integers(22, 44)), rng)
    if look.curve and rng.random() < 1 / 3:
        mask = _curved(mask, rng.uniform(-look.curve, look.curve))
    mask = _warped(mask, look, rng)
    width, height = mask.size
    if photographs and rng.random() < look.photograph:
        background = _piece(photographs[int(rng.integers(len(photographs)))], (width, height), rng)
    else:
        background = _gradient((width, height), rng)
    behind = float(np.asarray(background.convert("L"), dtype=np.float32).mean())
    colour = _colour(behind, rng, look.light)
    if rng.random() < look.shadow:
        dark = 0.0 if behind > 127 else 255.0
        offset = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        soft = Image.new("L", mask.size)
        soft.paste(mask, offset)
        soft = soft.filter(ImageFilter.GaussianBlur(1)).point(lambda value: value // 2)
        background.paste((int(dark),) * 3, (0, 0), soft)
    background.paste(colour, (0, 0), mask)
    return _photographed(background, look, rng)


def _letters(text: str, font: Path, size: int, rng: np.random.Generator) -> Image.Image:
    """White letters on black, with a margin."""
    opened = open_font(font, size)
    left, top, right, bottom = opened.getbbox(text)
    margin = (size * rng.uniform(0.05, 0.35, 4)).astype(int) + 1
    width, height = int(right - left + margin[0] + margin[2]), int(bottom - top + margin[1] + margin[3])
    mask = Image.new("L", (max(4, width), max(4, height)))
    ImageDraw.Draw(mask).text((margin[0] - left, margin[1] - top), text, 255, opened)
    return mask


def _curved(mask: Image.Image, strength: float) -> Image.Image:
    """Columns moved along an arc."""
    pixels = np.asarray(mask)
    rise = max(1, round(abs(strength) * mask.height))
    across = np.linspace(-1, 1, mask.width)
    shift = np.round((1 - across**2 if strength > 0 else across**2) * rise).astype(int)
    rows = np.arange(mask.height + rise)[:, None] - (rise - shift)[None]
    inside = (rows >= 0) & (rows < mask.height)
    moved = pixels[rows.clip(0, mask.height - 1), np.arange(mask.width)[None]]
    return Image.fromarray(np.where(inside, moved, 0).astype(np.uint8))


def _warped(mask: Image.Image, look: Look, rng: np.random.Generator) -> Image.Image:
    """Rotation, then perspective; the canvas grows with the rotation."""
    angle = rng.uniform(-look.rotation, look.rotation)
    mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    width, height = mask.size
    corners = np.array([[0, 0], [0, height], [width, height], [width, 0]], dtype=np.float64)
    moved = corners + rng.uniform(-1, 1, (4, 2)) * look.perspective * height * [[1, 1], [1, -1], [-1, -1], [-1, 1]]
    return mask.transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        perspective_coefficients(corners, moved),
        Image.Resampling.BILINEAR,
    )


def perspective_coefficients(target_42: np.ndarray, source_42: np.ndarray) -> list[float]:
    """Pillow's eight coefficients of the map that takes the corners `target_42` to `source_42`."""
    rows = []
    for (x, y), (u, v) in zip(target_42, source_42, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.linalg.solve(np.array(rows), source_42.reshape(-1)).tolist()


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A plain colour, or one that turns into another across the image."""
    first, second = rng.uniform(0, 255, 3), rng.uniform(-60, 60, 3)
    along = np.linspace(0, 1, size[0])[None, :, None] * rng.uniform(-1, 1)
    down = np.linspace(0, 1, size[1])[:, None, None] * rng.uniform(-1, 1)
    slope = (along + down) * (second if rng.random() < 0.6 else 0.0)
    return Image.fromarray((first + slope).clip(0, 255).astype(np.uint8))


def _piece(photograph: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random piece of a photograph, scaled to `size`."""
    scale = min(photograph.width / size[0], photograph.height / size[1]) * rng.uniform(0.2, 1.0)
    width, height = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    left = int(rng.integers(photograph.width - width + 1))
    top = int(rng.integers(photograph.height - height + 1))
    return photograph.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def _colour(behind: float, rng: np.random.Generator, light: float | None) -> tuple[int, int, int]:
    """A colour whose brightness differs from `behind` by at least MIN_CONTRAST, on the side that `light` asks for."""
    wanted: tuple[int, ...] = (-1, 1)
    if light is not None:
        lighter = rng.random() < light
        room = 255 - behind if lighter else behind
        wanted = (1,) if lighter == (room > MIN_CONTRAST) else (-1,)
    for _ in range(50):
        red, green, blue = rng.integers(0, 256, 3).tolist()
        difference = 0.299 * red + 0.587 * green + 0.114 * blue - behind
        if abs(difference) >= MIN_CONTRAST and np.sign(difference) in wanted:
            return red, green, blue
    dark = behind > 127 if light is None else wanted == (-1,)
    return (0, 0, 0) if dark else (255, 255, 255)


def _photographed(image: Image.Image, look: Look, rng: np.random.Generator) -> Image.Image:
    """Blur, noise and JPEG."""
    radius = rng.uniform(0, look.blur)
    if radius > 0.4:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    deviation = rng.uniform(0, look.noise)
    if deviation > 1:
        pixels = np.asarray(image, dtype=np.float32)
        noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(deviation)
        image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < look.jpeg:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
        image = Image.open(buffer).convert("RGB")
    return image
