"""Images: every mode becomes RGB, whatever is broken is refused by name."""

import numpy as np
import pytest
from PIL import Image

from tests.data_pipeline.odd_images import encoded, huge_png
from tokenizer.images import ImageError, decode_image

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
