"""`python -m tokenizer visual`: from image files to ids and back, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.tokenizer.image_cases import as_png, draw_images, write_parquet
from tokenizer.__main__ import main
from tokenizer.visual.commands import VisualInspectConfig
from tokenizer.visual.load import load_visual_tokenizer
from tokenizer.visual.patches import fit_patches


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return write_parquet(folder / "train.parquet", [as_png(image) for image in draw_images(30, 40)])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    fit_patches(draw_images(30, 32), 32, 20, 8, progress=False).save(folder)
    return folder


def test_train_writes_a_tokenizer_and_measures_it(images, tmp_path, capsys):
    shape = ["--codes", "20", "--image_size", "32", "--held_out", "0.2"]
    for name in ("a", "b"):
        assert main(["visual", "train", "--images", str(images), "--output", str(tmp_path / name), *shape]) == 0
    printed = capsys.readouterr().out
    assert "held-out 6 images: PSNR" in printed and "training" in printed
    first, second = (load_visual_tokenizer(tmp_path / name) for name in ("a", "b"))
    assert first.hash == second.hash and (first.vocab_size, first.image_size) == (20, 32)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_encode_then_decode(directory, images, tmp_path, suffix, capsys):
    ids, again = tmp_path / f"ids.{suffix}", tmp_path / "again"
    given = ["--tokenizer", str(directory)]
    assert main(["visual", "encode", *given, "--images", str(images), "--output", str(ids)]) == 0
    assert main(["visual", "decode", *given, "--ids", str(ids), "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 30
    # Decoded images are their own reconstructions, so their ids are the same.
    assert (
        main(["visual", "encode", *given, "--images", str(tmp_path / "out"), "--output", f"{again}.safetensors"]) == 0
    )
    stored = np.load(ids)["ids"] if suffix == "npz" else load_file(ids)["ids"]
    assert stored.shape == (30, 16) and np.array_equal(load_file(f"{again}.safetensors")["ids"], stored)


def test_inspect_measures_every_set(directory, images, tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(draw_images(1, 50)[0]).save(folder / "one.png")
    output = tmp_path / "out"
    arguments = ["--tokenizer", str(directory), "--images", str(images), f"mine={folder}", "--output", str(output)]
    assert main(["visual", "inspect", *arguments, "--limit", "5"]) == 0
    found = json.loads((output / "inspection.json").read_text())
    name = f"{images.parent.name}-train"
    assert {key: value["images"] for key, value in found["sets"].items()} == {name: 5, "mine": 1}
    assert 5 < found["sets"][name]["psnr"] < 60 and found["hash"] == load_visual_tokenizer(directory).hash
    assert Image.open(output / f"{name}.png").width > 500 and (output / "mine.png").is_file()


def test_ids_of_another_tokenizer_are_refused(directory, tmp_path, capsys):
    ids = tmp_path / "ids.safetensors"
    save_file({"ids": np.zeros((1, 16), dtype=np.int64)}, ids, {"tokenizer_hash": "f" * 64})
    arguments = ["visual", "decode", "--tokenizer", str(directory), "--ids", str(ids), "--output", str(tmp_path / "o")]
    assert main(arguments) == 1
    assert "ids of the tokenizer ffffffffffff, not of this one" in capsys.readouterr().err
    save_file({"ids": np.full((1, 16), 20)}, ids)
    assert main(arguments) == 1
    assert "must lie in [0, 20)" in capsys.readouterr().err
    ids.write_bytes(b"junk")
    assert main(arguments) == 1
    assert "no file of ids that can be read" in capsys.readouterr().err


def test_damaged_images_end_with_their_name(directory, tmp_path, capsys):
    good = as_png(draw_images(1, 40)[0])
    damaged = write_parquet(tmp_path / "x.parquet", [good, good[:-60]])
    arguments = ["--tokenizer", str(directory), "--images", str(damaged), "--output", str(tmp_path / "ids.npz")]
    assert main(["visual", "encode", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"tokenizer visual encode: {damaged}: row 1: damaged image")
    assert not (tmp_path / "ids.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["visual"], "command"),
        (["visual", "trian"], "trian"),
        (["visual", "train", "--images", "x", "--output", "y", "--patch", "7"], "7 does not divide image_size 64"),
        (["visual", "train", "--images", "x", "--output", "y", "--held_out", "1"], "below 1, got 1"),
        (["visual", "encode", "--images", "x", "--tokenizer", "t", "--output", "ids.pt"], "must end in .npz"),
        (["visual", "inspect", "--tokenizer", "t", "--images", "a=x", "a=y", "--output", "o"], "'a' is there twice"),
        (["visual", "inspect", "--tokenizer", "t", "--images", "../a=x", "--output", "o"], "must be fit for a file"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2 and message in capsys.readouterr().err


def test_weights_that_are_not_there_are_named(tmp_path, capsys):
    arguments = ["--weights", str(tmp_path / "gone.safetensors"), "--output", str(tmp_path / "o")]
    assert main(["visual", "import-vqgan", *arguments]) == 1
    assert "gone.safetensors: missing or damaged" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_help_says_how_a_network_is_trained(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["visual", "train", "--help"])
    assert exited.value.code == 0
    assert "pretrain/train.py --config configs/vq/runs/vq_cpu.yaml" in " ".join(capsys.readouterr().out.split())


def test_sets_without_a_name_are_called_after_file_and_folder():
    config = VisualInspectConfig("t", ["data/camvid/val.parquet", "x=y.parquet", "photos"], "o")
    assert [name for name, _ in config.sets()] == ["camvid-val", "x", "photos"]
