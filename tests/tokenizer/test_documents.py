"""One reader for every format: the same documents out, the place of every problem, no truncated file read as whole."""

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tokenizer.inputs.documents import InvalidDocumentError, list_files, read_documents

ROWS = [{"id": f"d{number}", "text": f"text {number} 文\n", "lang": "en", "source": "test"} for number in range(600)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def _write(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(LINES))
    elif name.endswith(".zst"):
        half = LINES.index(b"\n", len(LINES) // 2) + 1  # two frames, as parallel compressors write
        path.write_bytes(zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:]))
    else:
        path.write_bytes(LINES)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_formats_agree(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path, name)
    documents = list(read_documents(path))
    assert [{"id": d.id, "text": d.text, "lang": d.lang, "source": d.source} for d in documents] == ROWS
    consumed = [document.consumed for document in documents]
    assert consumed == sorted(consumed) and consumed[-1] <= path.stat().st_size


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_an_error(name: str, keep: float, tmp_path: Path) -> None:
    path = _write(tmp_path, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=f"{re.escape(name)}: damaged or truncated"):
        list(read_documents(path))


def test_problems_can_be_collected_instead(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b'{"text": "a"}\nnot json\n{"text": " "}\n\n{"text": "\xff"}\n[1]\n{"txt": "b"}\n{"text": "c"}\n')
    problems: list[InvalidDocumentError] = []
    assert [document.text for document in read_documents(path, on_invalid=problems.append)] == ["a", "c"]
    assert [(problem.kind, problem.where.rpartition(":")[2]) for problem in problems] == [
        ("json", "2"),
        ("empty", "3"),
        ("utf8", "5"),
        ("json", "6"),
        ("field", "7"),
    ]


def test_text_files_are_cut_at_blank_lines_and_lose_nothing(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number} " + "word " * (number % 400) + "\n\n" for number in range(300)]
    content = "".join(paragraphs) + "x" * 100_000 + "\n" + "last line without an end"
    path = tmp_path / "book.txt"
    path.write_text(content, encoding="utf-8")
    documents = list(read_documents(path))
    assert "".join(document.text for document in documents) == content
    assert len(documents) > 10
    assert all(document.text.endswith("\n\n") for document in documents[:-2])
    assert documents[1].id.startswith(f"{path}:") and documents[0].source == "book.txt"


def test_another_field_and_a_missing_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x", None]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: no column 'text'; it has body"):
        list(read_documents(tmp_path / "b.parquet"))
    with pytest.raises(InvalidDocumentError, match=r"b\.parquet:row 2: field 'body' must be a string"):
        list(read_documents(tmp_path / "b.parquet", text_field="body"))


def test_list_files_sorts_and_explains(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt", "sub/c.parquet", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_files([tmp_path])] == ["a.txt", "b.jsonl", "c.parquet"]
    with pytest.raises(ValueError, match=r"readme\.md: cannot read this kind of file"):
        list_files([tmp_path / "readme.md"])
    (tmp_path / "void").mkdir()
    with pytest.raises(FileNotFoundError, match="void: no file below it"):
        list_files([tmp_path / "void"])
    os.mkfifo(tmp_path / "pipe.jsonl")  # opened, it would wait for a writer for ever
    with pytest.raises(ValueError, match=r"pipe\.jsonl: a pipe or device"):
        list_files([tmp_path / "pipe.jsonl"])


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_around_the_documents_is_refused_with_what_to_do(indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"version": "1", "data": ROWS[:3]}, indent=indent), encoding="utf-8")
    with pytest.raises(InvalidDocumentError, match=r"there are version, data; 'data' is a list of objects.*that list"):
        list(read_documents(tmp_path / "a.json"))
