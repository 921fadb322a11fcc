"""The k-means patch codebook: exact in every direction, the same for the same seed, damaged files named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.images.source import ImageSource
from tests.tokenizer.image_cases import draw_images
from tokenizer.visual.base import VISUAL_FILE, VisualTokenizerError
from tokenizer.visual.load import load_visual_tokenizer
from tokenizer.visual.patches import PatchTokenizer, _filled_up, fit_patches, nearest_codes, sample_patches, to_patches
from tokenizer.visual.reconstruction import measure_reconstruction, perplexity

SIZE, CODES, PATCH = 32, 40, 8


@pytest.fixture(scope="module")
def tokenizer() -> PatchTokenizer:
    return fit_patches(draw_images(60, SIZE), SIZE, CODES, PATCH, progress=False)


def brute_force(patches: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Nearest code by whole-number differences, the first among equals."""
    differences = patches[:, None].astype(np.int64) - codes[None].astype(np.int64)
    return (differences**2).sum(axis=2).argmin(axis=1)


def test_every_id_decodes_to_what_encodes_to_it(tokenizer):
    """All codes differ, so decoding loses nothing."""
    assert tokenizer.vocab_size == CODES
    ids = np.arange(CODES * 16).reshape(-1, 16) % CODES
    assert np.array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


def test_encoding_is_brute_force_search(tokenizer):
    images = draw_images(10, SIZE, seed=7)
    expected = brute_force(to_patches(images, PATCH), tokenizer.weights()["patches"])
    assert np.array_equal(tokenizer.encode(images).reshape(-1), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 8, 10, 12]), st.booleans())
def test_ties_go_to_the_lowest_id(seed, patch, extreme):
    """Few values make many ties; black and white patches make the largest sums."""
    rng = np.random.default_rng(seed)
    values = [0, 255] if extreme else [120, 121, 122]
    codes = rng.choice(values, (6, 3 * patch * patch)).astype(np.uint8)
    patches = rng.choice(values, (20, 3 * patch * patch)).astype(np.uint8)
    assert np.array_equal(nearest_codes(patches, codes), brute_force(patches, codes))


def test_ids_lie_in_raster_order(tokenizer):
    """The id at row r, column c of the grid is that of the patch there (docs/methods/delvm.md: visual tokenizers)."""
    ids = np.zeros((1, 16), dtype=np.int64)
    ids[0, 4 * 2 + 1] = 5
    image = tokenizer.decode(ids)[0]
    code = tokenizer.weights()["patches"][5].reshape(PATCH, PATCH, 3)
    assert np.array_equal(image[2 * PATCH : 3 * PATCH, PATCH : 2 * PATCH], code)
    assert tokenizer.grid == 4 and tokenizer.tokens_per_image == 16


def test_the_same_seed_gives_the_same_tokenizer(tokenizer):
    images = draw_images(60, SIZE)
    assert fit_patches(images, SIZE, CODES, PATCH, progress=False).hash == tokenizer.hash
    assert fit_patches(images, SIZE, CODES, PATCH, seed=1, progress=False).hash != tokenizer.hash


def test_codes_that_coincide_are_replaced_by_the_patches_farthest_from_a_code():
    """Two clusters of nearly equal colours round to one code."""
    patches = np.array([[10], [11], [250], [90], [200], [250]], dtype=np.uint8).repeat(3, axis=1)
    filled = _filled_up(patches[:1], patches, 4)
    assert filled[:, 0].tolist() == [10, 250, 200, 90]
    assert np.array_equal(_filled_up(patches[:3], patches, 3), patches[:3])


def test_patches_are_a_random_sample_of_bounded_size():
    """Of all images alike, the same for the same seed, whether they come one by one or in batches."""
    images = np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    drawn = sample_patches(iter(images), 2, 30, seed=0)
    assert drawn.shape == (30, 12) and np.array_equal(drawn, sample_patches(iter(images), 2, 30, seed=0))
    assert not np.array_equal(drawn, sample_patches(iter(images), 2, 30, seed=1))
    assert np.array_equal(sample_patches([images[:90], images[90:]], 2, 200, seed=0), to_patches(images, 2))
    counts = np.zeros(200)
    for seed in range(300):
        counts[sample_patches([images], 2, 30, seed)[:, 0]] += 1
    assert counts.min() > 20 and counts.max() < 75  # 45 expected, standard deviation 6
    with pytest.raises(VisualTokenizerError, match="none to fit a codebook on"):
        sample_patches([], 2, 30, seed=0)


def test_too_few_distinct_patches_are_refused():
    with pytest.raises(VisualTokenizerError, match="only 1 distinct patches, fewer than 2 codes"):
        fit_patches(np.zeros((3, 8, 8, 3), dtype=np.uint8), 8, 2, 8, progress=False)
    with pytest.raises(VisualTokenizerError, match="8 does not divide image_size 20"):
        fit_patches(draw_images(1, 20), 20, 2, 8)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a")
    tokenizer.save(tmp_path / "b")
    again = load_visual_tokenizer(tmp_path / "a")
    images = draw_images(5, SIZE, seed=3)
    assert again.hash == tokenizer.hash and np.array_equal(again.encode(images), tokenizer.encode(images))
    assert [file.read_bytes() for file in sorted((tmp_path / "a").iterdir())] == [
        file.read_bytes() for file in sorted((tmp_path / "b").iterdir())
    ]
    codebook = again.codebook()
    assert codebook.shape == (CODES, 192) and codebook.dtype == np.float32 and np.abs(codebook).max() <= 1


def test_the_hash_covers_geometry_and_weights(tokenizer):
    patches = tokenizer.weights()["patches"]
    other = patches.copy()
    other[0, 0] ^= 1
    hashes = {PatchTokenizer(*case).hash for case in ((patches, 32), (patches, 64), (other, 32), (patches[::-1], 32))}
    assert len(hashes) == 4


def damage(directory: Path, name: str) -> None:
    """Flips a bit in the middle of a file."""
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2 + 200] ^= 1
    (directory / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors: missing or damaged"),
        (lambda d: (d / "model.safetensors").write_bytes(b"PK junk"), r"model\.safetensors: missing or damaged"),
        (lambda d: damage(d, "model.safetensors"), "are not what was saved"),
        (lambda d: (d / VISUAL_FILE).unlink(), f"holds no {VISUAL_FILE}"),
        (lambda d: (d / VISUAL_FILE).write_text("{"), "not JSON"),
        (lambda d: (d / VISUAL_FILE).write_text("[]"), "expected a mapping"),
        (lambda d: edit(d, kind="mystery"), "unknown kind 'mystery'"),
        (lambda d: edit(d, grid=7), "grid is 7, the weights say 4"),
        (lambda d: edit(d, image_size=30), "no square patch that divides 30 x 30"),
        (lambda d: edit(d, image_size="32"), "image_size is '32', expected int"),
        (lambda d: edit(d, image_size=64, grid=8), "are not what was saved"),
        (lambda d: edit(d, hash="0" * 64), "are not what was saved"),
    ],
)
def test_damaged_directories_are_named(tokenizer, tmp_path, change, message):
    tokenizer.save(tmp_path)
    change(tmp_path)
    with pytest.raises(VisualTokenizerError, match=message) as caught:
        load_visual_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def edit(directory: Path, **fields: object) -> None:
    path = directory / VISUAL_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        load_visual_tokenizer(tmp_path / "nowhere")


def test_images_and_ids_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(VisualTokenizerError, match=r"expected uint8 \[B, 32, 32, 3\], found uint8 \[1, 16, 16, 3\]"):
        tokenizer.encode(draw_images(1, 16))
    with pytest.raises(VisualTokenizerError, match="found float64"):
        tokenizer.encode(draw_images(1, 32) / 255)
    with pytest.raises(VisualTokenizerError, match=r"expected integers \[B, 16\], found int64 \[1, 15\]"):
        tokenizer.decode(np.zeros((1, 15), dtype=np.int64))
    for wrong in (-1, CODES):
        with pytest.raises(VisualTokenizerError, match=r"must lie in \[0, 40\)"):
            tokenizer.decode(np.full((1, 16), wrong))
    assert tokenizer.decode(np.zeros((0, 16), dtype=np.int64)).shape == (0, 32, 32, 3)


def test_what_a_reconstruction_is_measured_by(tokenizer):
    exact = tokenizer.decode(np.arange(CODES * 2).reshape(5, 16) % CODES)
    result = measure_reconstruction(tokenizer, exact)
    assert (result.images, result.psnr, result.codes_used) == (5, 60.0, 1.0)
    assert result.ssim == pytest.approx(1.0) and result.perplexity == pytest.approx(CODES)
    assert perplexity(np.array([7, 0, 0])) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="none to measure on"):
        measure_reconstruction(tokenizer, [])


def test_photographs_come_back_above_20_db(real_data):
    """21.1 dB were measured on BSDS photographs (docs/results/visual_tokenizers.md); here on fewer patches."""
    folder = real_data / "image_pairs" / "bsds500"
    train, valid = (ImageSource(folder / f"{split}.parquet", 64) for split in ("train", "val"))
    fitted = fit_patches(map(train.pixels, range(len(train))), 64, progress=False)
    assert measure_reconstruction(fitted, map(valid.pixels, range(40))).psnr > 20
