"""Crops of photographs: split by photograph, the same bytes every time, nothing left out without being named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.demo.photographs import SampleImagesConfig, random_crop, sample_images
from data_pipeline.demo.photographs_builtin import PHOTOGRAPHS, builtin_photographs


def write_photographs(folder: Path, count: int = 5, size: tuple[int, int] = (64, 48)) -> Path:
    """Photographs of one colour each, so that a crop tells which it is from."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (40 * number, 10, 200)).save(folder / f"p{number}.png")
    return folder


def colours(folder: Path) -> set[int]:
    return {int(np.asarray(Image.open(path))[0, 0, 0]) // 40 for path in folder.glob("*.png")}


def options(photographs: Path, output: Path, **more: object) -> SampleImagesConfig:
    return SampleImagesConfig(str(output), [str(photographs)], size=16, crops=3, **more)  # type: ignore[arg-type]


def test_a_photograph_is_on_one_side_and_every_one_is_there(tmp_path):
    photographs = write_photographs(tmp_path / "photographs")
    (photographs / "again.png").write_bytes((photographs / "p3.png").read_bytes())
    Image.new("RGB", (15, 90)).save(photographs / "small.png")
    text = sample_images(options(photographs, tmp_path / "out", valid_fraction=0.4))
    train, valid = colours(tmp_path / "out/train"), colours(tmp_path / "out/valid")
    assert train | valid == {0, 1, 2, 3, 4} and not train & valid and len(valid) == 2
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 15
    assert all(Image.open(path).size == (16, 16) for path in (tmp_path / "out").glob("*/*.png"))
    assert "1 that repeat another" in text and "small.png has 15 x 90 pixels" in text
    record = json.loads((tmp_path / "out/images.json").read_text())
    assert len(record["photographs"]["train"]) == 3 and record["left_out"]["repeated"] == 1


def test_same_call_same_bytes_and_another_call_replaces(tmp_path):
    photographs = write_photographs(tmp_path / "photographs", 3)
    made = []
    for name in ("a", "b"):
        sample_images(options(photographs, tmp_path / name))
        files = sorted((tmp_path / name).glob("*/*.png"))
        made.append([(path.name, path.read_bytes()) for path in files])
    assert made[0] == made[1]
    sample_images(SampleImagesConfig(str(tmp_path / "a"), [str(photographs)], size=16, crops=1))
    assert len(list((tmp_path / "a").glob("*/*.png"))) == 3
    assert not list((tmp_path / "a").glob(".sample-*"))


def test_crops_lie_inside_and_differ():
    pixels = np.arange(60 * 80, dtype=np.uint32).reshape(60, 80)
    image = Image.fromarray(np.stack([pixels // 256, pixels % 256, pixels * 0], -1).astype(np.uint8))
    config = SampleImagesConfig("", size=20, smallest=0.5)
    crops = [random_crop(image, config, np.random.default_rng(number)) for number in range(20)]
    assert {crop.size for crop in crops} == {(20, 20)}
    assert len({crop.tobytes() for crop in crops}) == 20


@pytest.mark.parametrize(
    ("count", "more", "message"),
    [
        (1, {}, "1 photographs of at least 16 x 16 pixels, two are needed"),
        (3, {"smallest": 0.0}, "smallest: must be above 0"),
        (3, {"valid_fraction": 1.0}, "valid_fraction: must be between 0 and 1"),
    ],
)
def test_what_cannot_be_split_is_refused(count, more, message, tmp_path):
    photographs = write_photographs(tmp_path / "photographs", count)
    with pytest.raises(ValueError, match=message):
        sample_images(options(photographs, tmp_path / "out", **more))


def test_a_folder_with_something_else_is_not_touched(tmp_path, capsys):
    photographs = write_photographs(tmp_path / "photographs", 3)
    assert main(["sample-images", "--images", str(photographs), "--output", str(photographs)]) == 1
    assert "holds something else" in capsys.readouterr().err
    (photographs / "p1.png").write_bytes((photographs / "p1.png").read_bytes()[:60])
    assert main(["sample-images", "--images", str(photographs), "--output", str(tmp_path / "out"), "--size", "8"]) == 1
    assert "p1.png: damaged image" in capsys.readouterr().err


def test_the_packages_carry_the_photographs(tmp_path):
    pytest.importorskip("skimage", reason="scikit-image comes with the extra vision")
    pytest.importorskip("sklearn", reason="scikit-learn comes with the extra vision")
    assert len(builtin_photographs()) == sum(map(len, PHOTOGRAPHS.values()))
    text = sample_images(SampleImagesConfig(str(tmp_path), crops=1))
    assert "valid: astronaut, coffee, flower" in text
    for path in tmp_path.glob("*/*.png"):  # none of them is grey
        pixels = np.asarray(Image.open(path), dtype=int)
        assert np.ptp(pixels, axis=-1).max() > 20, path.name
