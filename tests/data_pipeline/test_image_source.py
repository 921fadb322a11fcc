"""Images without labels: folders, Parquet, views as a pure function of the sample's number."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.errors import SourceError
from data_pipeline.images.source import ImageSource
from tests.tokenizer.image_cases import as_png, draw_images, write_parquet
from tokenizer.inputs.image_stores import open_images
from tokenizer.inputs.images import ImageError, resize_and_crop

PNGS = [as_png(image) for image in draw_images(3, 40)]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    for number, content in enumerate(PNGS):
        (path / f"{number}.png").write_bytes(content)
    (path / "notes.txt").write_text("not an image")
    return path


def test_every_kind_of_store_holds_the_same_images(folder, tmp_path):
    parquet = write_parquet(tmp_path / "plain.parquet", PNGS)
    structs = pa.array([{"bytes": content, "path": "x"} for content in PNGS])
    pq.write_table(pa.table({"picture": structs}), tmp_path / "hub.parquet")
    stores = [
        open_images(parquet),
        open_images(folder),
        open_images(tmp_path / "hub.parquet", "picture"),
        open_images([folder / "0.png", folder / "1.png", folder / "2.png"]),
    ]
    for store in stores:
        assert [store.image(number) for number in range(len(store))] == PNGS
        assert list(store.image_sizes()) == [len(content) for content in PNGS]
    assert stores[3].name(1) == str(folder / "1.png") and stores[0].name(2) == f"{parquet}: row 2"


def test_copies_are_views_of_their_own_and_always_the_same(folder):
    source = ImageSource(folder, 16, copies=3, seed=5)
    samples = [source.sample(number)["image"] for number in range(len(source))]
    assert len(source) == 9 and samples[0].shape == (3, 16, 16) and samples[0].dtype == np.uint8
    assert len({sample.tobytes() for sample in samples}) == 9
    again = ImageSource(folder, 16, copies=3, seed=5)
    assert all(np.array_equal(again.sample(number)["image"], samples[number]) for number in (8, 0, 4))
    assert not np.array_equal(ImageSource(folder, 16, copies=3, seed=6).sample(0)["image"], samples[0])
    assert again.identity() == source.identity() != ImageSource(folder, 16, copies=3, seed=6).identity()


def test_without_copies_it_is_the_centre_of_the_resized_image(folder):
    pixels = ImageSource(folder, 40).sample(1)["image"]
    assert np.array_equal(pixels.transpose(1, 2, 0), draw_images(3, 40)[1])


@pytest.mark.parametrize("size", [(40, 40), (57, 33), (33, 58), (20, 100), (16, 16)])
def test_resize_and_crop_is_torchvisions(size):
    """Resize (bilinear), then CenterCrop (docs/methods/delvm.md: visual tokenizers)."""
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = v2.Compose([v2.Resize(16), v2.CenterCrop(16)])(image)
    assert np.array_equal(np.asarray(resize_and_crop(image, 16)), np.asarray(expected))


def test_what_cannot_be_read_is_named(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    pq.write_table(pa.table({"image": ["text"]}), tmp_path / "text.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    cases = [
        (tmp_path / "gone", "gone: no such file or folder"),
        (empty, "empty: holds no images"),
        (tmp_path / "text.parquet", "column 'image' holds string, not bytes"),
        (tmp_path / "junk.parquet", "not a Parquet file"),
        ([], "name at least one"),
    ]
    for path, message in cases:
        with pytest.raises(ImageError, match=message):
            ImageSource(path, 16)
    with pytest.raises(ImageError, match=r"plain\.parquet: no column 'picture'; it has id, image"):
        ImageSource(write_parquet(tmp_path / "plain.parquet", PNGS), 16, column="picture")
    damaged = ImageSource(
        write_parquet(tmp_path / "cut.parquet", [PNGS[0], PNGS[1][:-50], as_png(np.zeros((1, 9, 3), np.uint8))]), 16
    )
    assert damaged.sample(0)["image"].shape == (3, 16, 16)
    with pytest.raises(ImageError, match=r"cut\.parquet: row 1: damaged"):
        damaged.sample(1)
    with pytest.raises(ImageError, match=r"cut\.parquet: row 2: 9 x 1 pixels"):
        damaged.sample(2)
    with pytest.raises(SourceError, match="image 3 asked for, but there are 3"):
        damaged.sample(3)
