"""Every kind of file that people have, through every command that reads text: the same documents, or one refusal."""

import gzip
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from data_pipeline.demo.text import SampleConfig, sample
from data_pipeline.shards.parts import Plan, make_plan
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.read_part import RejectLog, read_unit
from eval.language.held_out import find_documents
from tests.tokenizer.file_cases import CASES, FOLDERS, LINES, RECORDS, REFUSED, TEXTS
from tokenizer.inputs.broken_text import BrokenText, InvalidDocumentError, TextCheck, mend
from tokenizer.inputs.corpus import corpus_texts

HALF = b'{"text": "cut in two: \\ud83d and on"}\n'
BYTE = b'{"text": "caf\xe9 and on"}\n'


def by_corpus(path: Path, folder: Path, policy: BrokenText, text_field: str) -> list[str]:
    """How `tokenizer train`, `compress` and `inspect` read."""
    return list(corpus_texts([path], text_field, TextCheck(policy)))


def by_prepare(path: Path, folder: Path, policy: BrokenText, text_field: str) -> list[str]:
    """How `data_pipeline prepare` reads: the plan as it lies on the disk, part by part, and its threshold."""
    config = PrepareConfig([str(path)], str(folder), "none", text_field=text_field, broken_text=policy, part_bytes=2000)
    make_plan(config).save(folder / "plan.json")
    log, texts = RejectLog(policy), []
    for part in Plan.load(folder / "plan.json").parts:
        for unit in part:
            log.begin(unit)
            texts += [document.text for document in read_unit(unit, text_field, "train", log)]
    log.save(folder / "log.json")
    rejected = sum(json.loads((folder / "log.json").read_text())["counts"].values())
    if rejected > 0.01 * (len(texts) + rejected) and policy == "skip":
        raise ValueError(f"{rejected} of {len(texts) + rejected} documents: {log.found[0].excerpt}")
    return texts


def by_sample(path: Path, folder: Path, policy: BrokenText, text_field: str) -> list[str]:
    """`data_pipeline sample`."""
    config = SampleConfig(str(folder / "sample"), [str(path)], text_field, valid_fraction=0.3, broken_text=policy)
    sample(config)
    files = sorted((folder / "sample").glob("*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_bytes().splitlines()]


def by_held_out(path: Path, folder: Path, policy: BrokenText, text_field: str) -> list[str]:
    """`eval held-out`, and how `eval collapse` reads: a file, or those of a split."""
    return [text for texts in find_documents(path, "valid", policy).values() for text in texts]


READERS: list[Callable[[Path, Path, BrokenText, str], list[str]]] = [by_corpus, by_prepare, by_sample, by_held_out]
Reader = Callable[[Path, Path, BrokenText, str], list[str]]


def pairs(cases: Iterable[str]) -> list:
    """Every case with every reader that takes such input: held-out text is a file here, see below for its folders."""
    return [
        pytest.param(case, read, id=f"{case}, {read.__name__}")
        for case in cases
        for read in READERS
        if read is not by_held_out or case not in FOLDERS
    ]


@pytest.mark.parametrize(("case", "read"), pairs(CASES))
def test_every_document_is_read_once(case: str, read: Reader, tmp_path: Path) -> None:
    if case == "a name that is not UTF-8" and os.fsencode("\udce9") != b"\xe9":
        pytest.skip("names are UTF-8 on this system")
    path = CASES[case](tmp_path)
    (tmp_path / "out").mkdir()
    assert sorted(read(path, tmp_path / "out", "skip", "text")) == sorted(TEXTS)


@pytest.mark.parametrize(("case", "read"), pairs(REFUSED))
def test_what_cannot_be_read_is_refused_by_name(case: str, read: Reader, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    (tmp_path / "out").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        read(make(tmp_path), tmp_path / "out", "skip", "text")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("broken", [HALF, BYTE])
def test_broken_text_follows_one_switch(broken: bytes, read: Reader, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + broken)
    for name in ("skip", "replace", "refuse"):
        (tmp_path / name).mkdir()
    mended = "cut in two: \ufffd and on" if broken == HALF else "caf\ufffd and on"
    assert sorted(read(path, tmp_path / "skip", "skip", "text")) == sorted(TEXTS)
    assert sorted(read(path, tmp_path / "replace", "replace", "text")) == sorted([*TEXTS, mended])
    with pytest.raises(ValueError, match=r"a\.jsonl:121: not UTF-8 \("):
        read(path, tmp_path / "refuse", "refuse", "text")


@pytest.mark.parametrize("read", [by_corpus, by_prepare, by_sample])
@pytest.mark.parametrize(
    ("text_field", "wrapped"),
    [
        ("meta.text", lambda text: {"meta": {"text": text, "n": 1}}),
        ("turns.content", lambda text: {"turns": [{"content": part} for part in text.split(", ")]}),
        ("parts", lambda text: {"parts": text.split(", ")}),
    ],
)
@pytest.mark.parametrize("kind", [".parquet", ".jsonl"])
def test_the_text_may_be_nested(kind: str, text_field: str, wrapped, read: Reader, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [wrapped(text) for text in TEXTS]
    path = tmp_path / f"a{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    expected = TEXTS if text_field == "meta.text" else [text.replace(", ", "\n") for text in TEXTS]
    assert sorted(read(path, tmp_path / "out", "skip", text_field)) == sorted(expected)


def test_held_out_files_are_found_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "valid.en.JSONL").write_bytes(LINES)
    (tmp_path / "valid.zh.json").write_text(json.dumps(RECORDS))
    (tmp_path / "blob").write_bytes(gzip.compress(LINES))
    (tmp_path / "valid.fr.jsonl.gz").symlink_to("blob")
    (tmp_path / "._valid.en.jsonl").write_bytes(b"\x00")
    (tmp_path / "train.en.jsonl").write_bytes(LINES)
    assert find_documents(tmp_path, "valid") == {"en": TEXTS, "fr": TEXTS, "zh": TEXTS}


def test_the_policy_counts_shows_and_refuses(capsys) -> None:
    check = TextCheck("skip")
    problem = InvalidDocumentError("a.jsonl:7", "utf8", "not UTF-8 (half)")
    assert not check(problem) and check.broken == 1
    check.finish(99)
    assert "1 of 100 documents hold broken text and were left out: a.jsonl:7: not UTF-8" in capsys.readouterr().err
    with pytest.raises(InvalidDocumentError, match=r"a\.jsonl:7: .*1 of 99 documents .* more than 1%: .*iconv"):
        check.finish(98)
    mending = TextCheck("replace")
    assert mending(problem)
    mending.finish(1)
    assert "1 of 1 documents hold broken text and were mended" in capsys.readouterr().err
    with pytest.raises(InvalidDocumentError):
        check(InvalidDocumentError("a", "json", "not an object"))
    assert mend("a\ud83db\udce9") == "a\ufffdb\ufffd" and mend("\U0001f600") == "\U0001f600"


def test_what_is_not_used_is_shown(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for number in range(5):
        (tmp_path / f"{number}.csv").write_text("x")
    assert len(list(corpus_texts([tmp_path], "text", TextCheck("skip")))) == len(RECORDS)
    assert "5 of 6 files are not used (0.csv, 1.csv, 2.csv and 2 more; 5 of " in capsys.readouterr().err


def test_ids_of_zero_are_ids(tmp_path: Path) -> None:
    from tokenizer.inputs.documents import read_documents

    rows = [{"id": 0, "text": "a"}, {"id": 1, "text": "b"}, {"id": None, "text": "c"}, {"text": "d"}]
    (tmp_path / "zero.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [document.id for document in read_documents(tmp_path / "zero.jsonl")]
    assert ids == ["0", "1", f"{tmp_path / 'zero.jsonl'}:3", f"{tmp_path / 'zero.jsonl'}:4"]
