"""Images as they come from anywhere: some odd but sound, some that must be refused, and why."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; it holds no such pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


SOUND = {
    "CMYK": encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "palette": encoded(Image.fromarray(PIXELS).convert("P"), "PNG"),
    "16 bits": encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) << 8), "PNG"),
}
"""A file that calls itself .jpg and holds a PNG is sound, too: the content decides."""
BROKEN = {
    "truncated": (encoded(Image.fromarray(PIXELS), "JPEG")[:-900], "damaged image"),
    "zero bytes": (b"", "holds no bytes"),
    "50,000 x 50,000 pixels": (huge_png(50_000, 50_000), "many more pixels than"),
    "a text that calls itself an image": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}
"""Bytes, and what the refusal says."""
