"""Word accuracy: the metric, the tables, the pictures, and what is left out."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from data_pipeline.words.labels import LabelRules
from eval.__main__ import main
from eval.models import ModelLoadError
from eval.report.pictures import read_pictures
from eval.words.ocr import Score, Word, find_benchmarks, one_minus_ned, score, weighted_mean
from eval.words.recognisers import Reading, open_recogniser
from pretrain.command_line import parse
from pretrain.trainer import train
from tests.data_pipeline.word_cases import picture, write_folder, write_lmdb, write_parquet
from tests.pretrain import test_clip4str
from tests.pretrain.test_word_recognition import LABELS, SHAPE, arguments
from tokenizer.characters import CHARSETS


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "shape.yaml").write_text(json.dumps(SHAPE))
    words = write_lmdb(folder / "words", LABELS)
    train(parse(arguments(str(folder / "shape.yaml"), str(words), folder / "run", steps=2))[0])
    return folder / "run"


def test_means_are_weighted_by_images():
    """The published rows: CLIP4STR-L* averages 97.42, PARSeq-A on real data 95.57; the plain mean would be another."""
    images = (857, 3000, 647, 288, 1811, 645)
    for row, mean in (
        ((99.42, 99.13, 98.61, 99.65, 92.60, 98.13), 97.42),
        ((97.32, 97.87, 97.37, 97.22, 90.34, 94.73), 95.57),
    ):
        scores = [Score(count, accuracy) for count, accuracy in zip(images, row, strict=True)]
        assert weighted_mean(scores, "accuracy") == pytest.approx(mean, abs=0.005)


def test_normalised_edit_similarity():
    assert one_minus_ned("abc", "abd") == pytest.approx(2 / 3)
    assert (one_minus_ned("", ""), one_minus_ned("abc", ""), one_minus_ned("ab", "abab")) == (1.0, 0.0, 0.5)


def test_both_sides_are_brought_to_the_charset():
    rules = LabelRules(CHARSETS["36"])
    words = [Word("x", label, None) for label in ("It's", "ABC", "Café", "no")]
    readings = [Reading(text, 0.5) for text in ("ITS", "ABC", "cafe!", "yes")]
    result, read = score(words, readings, rules, 1.0)
    assert (result.images, result.accuracy, result.case_sensitive) == (4, 0.75, 0.25)
    assert [(word.label, word.reading) for word in read if word.similarity < 1] == [("no", "yes")]


def test_the_command(recogniser, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write_lmdb(data / "lmdb", LABELS[:4])
    write_folder(data / "folder", [*LABELS[:2], "--"])
    write_parquet(data / "pq.parquet", ["good", "bad"], [picture(1), picture(2)[:50]])
    words = ["ocr", "--model", f"ours={recogniser}", "--data", str(data), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "1 images cannot be read" in capsys.readouterr().err
    assert main([*words, "--max_unreadable", "0.5"]) == 0
    table = capsys.readouterr().out
    assert "folder: 1 left out" in table and "label '--' is empty" in table and "pq: 1 left out" in table
    assert [line.split()[-2] for line in table.splitlines() if line.startswith(("lmdb ", "folder ", "pq "))] == [
        "2",
        "4",
        "1",
    ]
    content = json.loads((tmp_path / "out/ocr.json").read_text())
    assert content["results"]["ours"]["lmdb"]["images"] == 4 and 0 <= content["mean"]["ours"]["similarity"] <= 1
    pictures, problems = read_pictures(tmp_path / "out")
    assert [picture.name for picture in pictures] == ["errors_ours", "words_ours"] and not problems
    assert pictures[1].caption.startswith("ours: 7 of 7 words")
    alone = ["ocr", "--model", str(recogniser), "--data", str(data / "lmdb"), "--decoding", "parallel"]
    assert main([*alone, "--refinements", "2", "--limit", "3"]) == 0
    assert "lmdb                               3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments_", "message"),
    [
        (["--model", "nowhere", "--data", "."], "neither a text recogniser"),
        (["--model", "{run}", "--data", "nowhere"], "no such file or folder of word images"),
        (["--model", "{run}", "--data", "{empty}"], "holds neither data.mdb"),
        (["--model", "{run}", "{run}", "--data", "."], "two models are called"),
        (["--model", "{run}", "--data", ".", "--charset", "99"], "charset '99'"),
    ],
)
def test_wrong_arguments_end_in_one_line(recogniser, tmp_path, monkeypatch, capsys, arguments_, message):
    (tmp_path / "empty").mkdir()
    write_lmdb(tmp_path / "lmdb", LABELS[:2])
    monkeypatch.chdir(tmp_path)
    filled = [word.format(run=recogniser, empty=tmp_path / "empty") for word in arguments_]
    if "--data" in filled and filled[filled.index("--data") + 1] == ".":
        filled[filled.index("--data") + 1] = "lmdb"
    assert main(["ocr", *filled]) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_clip4str_is_opened_by_the_same_command(tmp_path, capsys):
    (tmp_path / "shape.yaml").write_text(json.dumps(test_clip4str.SHAPE))
    words = write_lmdb(tmp_path / "words", LABELS[:4])
    arguments_ = test_clip4str.arguments(str(tmp_path / "shape.yaml"), str(words), tmp_path / "run", steps=1)
    train(parse(arguments_)[0])
    command = [
        "ocr",
        "--model",
        f"clip4str={tmp_path / 'run'}",
        "--data",
        str(words),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    assert "clip4str" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/ocr.json").read_text())["results"]["clip4str"]["words"]["images"] == 4


def test_one_store_is_one_benchmark(tmp_path):
    write_lmdb(tmp_path / "lmdb", LABELS[:2])
    assert list(find_benchmarks(tmp_path / "lmdb")) == ["lmdb"]
    assert list(find_benchmarks(tmp_path)) == ["lmdb"]


def test_the_onnx_recogniser_gets_bgr_and_its_answers_are_passed_on(monkeypatch):
    """With a stand-in for the package, which is optional; the next test has the real one where it is installed."""
    import numpy as np
    from PIL import Image

    seen = []

    class Engine:
        def __call__(self, pixels, **options):
            seen.append((pixels[0, 0].tolist(), options))
            return ([["word", 0.75]] if len(seen) == 1 else None), 0.0

    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", SimpleNamespace(RapidOCR=Engine))
    image = Image.fromarray(np.full((4, 4, 3), (1, 2, 3), np.uint8))
    readings = open_recogniser("rapidocr", None, "autoregressive", 1).read([image, image])
    assert readings == [Reading("word", 0.75), Reading("", 0.0)]
    assert seen[0] == ([3, 2, 1], {"use_det": False, "use_cls": False, "use_rec": True})
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(ModelLoadError, match="pip install rapidocr-onnxruntime"):
        open_recogniser("rapidocr", None, "autoregressive", 1)


def test_the_onnx_recogniser_reads_beside_ours(recogniser, tmp_path, capsys):
    pytest.importorskip("rapidocr_onnxruntime", reason="the package with the ONNX recogniser is optional")
    write_lmdb(tmp_path / "lmdb", LABELS[:3])
    assert main(["ocr", "--model", f"ours={recogniser}", "rapidocr", "--data", str(tmp_path / "lmdb")]) == 0
    assert "rapidocr" in capsys.readouterr().out
