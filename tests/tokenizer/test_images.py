"""Images: every mode becomes RGB, whatever is broken is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data_pipeline.odd_images import encoded, huge_png
from tokenizer.inputs.images import ImageError, decode_image

PIXELS = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"),
     ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("F", "TIFF"), ("I", "TIFF")],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode, kind):
    image = (
        Image.fromarray(PIXELS).convert("L").convert(mode)
        if mode in ("I", "F")
        else Image.fromarray(PIXELS).convert(mode)
    )
    decoded = decode_image(encoded(image, kind), "x")
    assert (decoded.mode, decoded.size) == ("RGB", (12, 8))
    expected = image.convert("RGBA").convert("RGB") if mode not in ("I", "F") else image.convert("L").convert("RGB")
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).mean() < 12


def test_sixteen_bits_keep_their_upper_half():
    values = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    decoded = decode_image(encoded(Image.fromarray(values), "PNG"), "x")
    assert np.array_equal(np.asarray(decoded)[:, :, 0], values >> 8)


def test_transparency_lies_on_white():
    decoded = decode_image(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG"), "x")
    assert np.asarray(decoded).min() == 255


def test_the_content_decides_the_kind():
    """A file that calls itself .jpg but holds a PNG is a PNG; a text stays a text."""
    assert decode_image(encoded(Image.fromarray(PIXELS), "PNG"), "photo.jpg").size == (12, 8)
    with pytest.raises(ImageError, match=r"photo\.jpg: not an image of a known kind"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "photo.jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no bytes"),
        (b"hello", "not an image of a known kind"),
        (huge_png(50_000, 50_000), "many more pixels than 64,000,000"),
        (huge_png(8_000, 9_000), "8,000 x 9,000 pixels, more than 64,000,000"),
        (huge_png(20, 20), "damaged image"),
        (encoded(Image.fromarray(np.tile(PIXELS, (20, 20, 1))), "JPEG")[:-900], "damaged image"),
        (encoded(Image.fromarray(np.tile(PIXELS, (20, 20, 1))), "PNG")[:-200], "damaged image"),
    ],
)
def test_broken_images_are_named(content, message):
    with pytest.raises(ImageError, match=f"a/b: .*{message}|a/b: {message}"):
        decode_image(content, "a/b")


def png_of_16_bits(values_HWC: np.ndarray) -> bytes:
    """Pillow writes no colours of 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_largest_value_says_how_many_bits_are_meant(bits, channels):
    values_HWC = np.random.default_rng(bits).integers(0, 2**bits, (8, 12, channels))
    values_HWC[0, 0, :] = 2**bits - 1
    if channels == 4:
        values_HWC[..., 3] = 2**bits - 1  # opaque
    decoded_HWC = np.asarray(decode_image(png_of_16_bits(values_HWC), "x"))
    expected_HWC = np.broadcast_to(values_HWC[..., : min(channels, 3)] >> (bits - 8), decoded_HWC.shape)
    assert np.array_equal(decoded_HWC, expected_HWC)


def test_fractions_are_shares_of_white():
    values = np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF"), "x"))
    assert np.array_equal(decoded[..., 0], (values.astype(np.float64) * 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_are_upright(kind, orientation):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :15], pixels[10:, 15:] = (250, 10, 10), (10, 10, 250)  # told apart from every turn and mirror image
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).convert("RGB")
    assert np.array_equal(np.asarray(decode_image(buffer.getvalue(), "x")), np.asarray(turned))
    assert turned.size == ((20, 30) if orientation in (5, 6, 7, 8) else (30, 20))


def test_damaged_exif_data_do_not_cost_the_image():
    content = encoded(Image.fromarray(PIXELS), "JPEG")
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\xff\xff\xff\xff\xff\xff"
    damaged = content[:2] + b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken + content[2:]
    assert decode_image(damaged, "x").size == (12, 8)
