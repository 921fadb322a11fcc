"""Bad input of every kind: named with file, place and remedy; a bad document is counted, never silently lost."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.token_shards import Meta
from data_pipeline.__main__ import main
from data_pipeline.errors import PrepareError
from data_pipeline.shards.prepare import prepare
from data_pipeline.shards.prepare_config import PrepareConfig

from .conftest import TEXTS

GOOD = [json.dumps({"text": text}).encode() for text in TEXTS]
BAD = {
    "broken JSON": b'{"text": "the line ends he',
    "invalid UTF-8": b'{"text": "caf\xe9"}',
    "missing or mistyped text field": b'{"text": 17}',
    "empty document": b'{"text": "  "}',
}


@pytest.fixture
def attempt(tokenizer_directory: Path, tmp_path: Path):
    """A function that runs prepare on one worker into tmp_path/out."""

    def run(*inputs: Path | str, **options: object) -> Meta:
        given = {"tokenizer": str(tokenizer_directory), "workers": 1} | options
        return prepare(PrepareConfig([str(path) for path in inputs], str(tmp_path / "out"), **given))

    return run


def write_jsonl(path: Path, lines: list[bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_rejects_are_counted_and_quoted_by_reason(attempt, tmp_path: Path) -> None:
    lines = [*GOOD[:5], *BAD.values(), *GOOD[5:], BAD["broken JSON"], b'{"other": "x"}']
    meta = attempt(write_jsonl(tmp_path / "a.jsonl", lines), reject_threshold=0.5)
    assert meta.documents == len(GOOD)
    assert {reason: entry.count for reason, entry in meta.rejected.items()} == {
        "broken JSON": 2,
        "invalid UTF-8": 1,
        "missing or mistyped text field": 2,
        "empty document": 1,
    }
    examples = {reason: [(e.file, e.line) for e in entry.examples] for reason, entry in meta.rejected.items()}
    assert examples["broken JSON"] == [("a.jsonl", 6), ("a.jsonl", 10 + len(GOOD) - 5)]
    assert examples["invalid UTF-8"] == [("a.jsonl", 7)]
    assert meta.rejected["invalid UTF-8"].examples[0].excerpt == '{"text": "caf\\xe9"}'
    assert meta == Meta.load(tmp_path / "out")


def test_line_numbers_are_right_in_every_part(attempt, tmp_path: Path) -> None:
    lines = [line for good in GOOD for line in (good, BAD["broken JSON"])]
    meta = attempt(write_jsonl(tmp_path / "a.jsonl", lines), reject_threshold=0.6, part_bytes=3000)
    assert meta.documents == len(GOOD) and meta.rejected["broken JSON"].count == len(GOOD)
    assert [example.line for example in meta.rejected["broken JSON"].examples] == [2, 4, 6]
    (tmp_path / "out" / "meta.json").unlink()


@pytest.mark.parametrize("reason", BAD)
def test_too_many_rejects_are_refused_and_explained(attempt, tmp_path: Path, reason: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*GOOD, BAD[reason]])
    with pytest.raises(PrepareError) as refusal:
        attempt(path)
    message = str(refusal.value)
    assert "1 of 81 documents (1.23%) cannot be used, more than reject_threshold 1.00%" in message
    assert f"{reason}: 1 (a.jsonl:81 " in message and "or mend the input and remove" in message
    assert not (tmp_path / "out" / "meta.json").exists()
    # A mended input is another input, and the message says what to do about the shards that are there.
    mended = write_jsonl(tmp_path / "mended" / "a.jsonl", GOOD)
    with pytest.raises(PrepareError, match=r"unfinished shards of another input .* remove .*out to begin anew"):
        attempt(mended)
    # Raising the threshold finishes from the parts that are there.
    shard = tmp_path / "out" / "00000.ds"
    written = shard.stat().st_mtime_ns
    assert attempt(path, reject_threshold=0.1).rejected[reason].count == 1
    assert shard.stat().st_mtime_ns == written


def test_rejects_in_tables_and_text_files(attempt, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    pq.write_table(pa.table({"text": ["a", None, "", "b"]}), inputs / "a.parquet", row_group_size=2)
    (inputs / "b.txt").write_bytes(b"good\n\xff\n")
    (inputs / "c.txt").write_bytes(b"")
    datasets.Dataset.from_dict({"text": ["c", None]}).save_to_disk(tmp_path / "set")
    meta = attempt(inputs, tmp_path / "set", reject_threshold=0.9)
    found = {reason: [(e.file, e.line) for e in entry.examples] for reason, entry in meta.rejected.items()}
    assert found == {
        "missing or mistyped text field": [("a.parquet", 2), ("set", 2)],
        "invalid UTF-8": [("b.txt", 1)],
        "empty document": [("a.parquet", 3), ("c.txt", 1)],
    }
    assert meta.documents == 3


def test_input_that_cannot_be_read_at_all(attempt, tokenizer_directory: Path, tmp_path: Path, monkeypatch) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", GOOD)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"\n".join(GOOD))[:-20])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then something else")
    (tmp_path / "zero.jsonl").write_bytes(b"")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rowless.parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "body.parquet")
    dataset = datasets.Dataset.from_dict({"body": ["x"]})
    dataset.save_to_disk(tmp_path / "set")
    datasets.DatasetDict({"test": dataset}).save_to_disk(tmp_path / "splits")
    bare = tmp_path / "bare"
    bare.mkdir()
    description = json.loads((tokenizer_directory / "tokenizer.json").read_text())
    (bare / "tokenizer.json").write_text(json.dumps(description))
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    cases: list[tuple[list[Path | str], dict, str]] = [
        ([tmp_path / "nowhere.jsonl"], {}, "nowhere.jsonl: no such file or directory"),
        ([tmp_path / "empty"], {}, "no file below it ends in .jsonl"),
        ([tmp_path / "a.csv"], {}, "a.csv: cannot read this kind of file; known are .jsonl"),
        ([tmp_path / "cut.jsonl.gz"], {}, "cut.jsonl.gz: damaged or truncated"),
        ([tmp_path / "cut.parquet"], {}, "cut.parquet: damaged or truncated"),
        ([tmp_path / "zero.jsonl"], {}, "out: the input holds no document"),
        ([tmp_path / "rowless.parquet"], {}, "holds no document"),
        ([tmp_path / "body.parquet"], {}, "body.parquet: no column 'text'; it has body"),
        ([tmp_path / "set"], {}, "set: no column 'text'; it has body; set text_field"),
        ([tmp_path / "splits"], {}, "splits: no split 'train'; choose one of test"),
        (["owner/name"], {}, "owner/name: no file or directory of this name, and not readable as a data set"),
        ([good, good], {}, "good.jsonl: given twice in `input`"),
        ([good], {"tokenizer": str(tmp_path / "no_tokenizer")}, "no_tokenizer: no such file or directory"),
        ([good], {"tokenizer": str(bare)}, "bare: the tokenizer has no eos_token, with which every document ends"),
        ([], {}, "input: name at least one file"),
        ([good], {"workers": -1}, "workers: expected 0 or more, found -1"),
        ([good], {"reject_threshold": 1.5}, "reject_threshold: expected a share from 0 to 1, found 1.5"),
        ([good], {"part_bytes": 0}, "part_bytes: expected at least 1, found 0"),
    ]
    for number, (inputs, options, message) in enumerate(cases):
        with pytest.raises((ValueError, FileNotFoundError)) as refusal:
            prepare(
                PrepareConfig(
                    [str(path) for path in inputs],
                    str(tmp_path / str(number) / "out"),
                    **({"tokenizer": str(tokenizer_directory), "workers": 1} | options),
                )
            )
        assert message in str(refusal.value)
        assert not (tmp_path / str(number) / "out" / "meta.json").exists()


def test_the_command_line_reports_in_one_line(tokenizer_directory: Path, tmp_path: Path, capsys) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*GOOD, BAD["broken JSON"]])
    command = ["prepare", "--input", str(path), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main([*command, "--tokenizer", str(tmp_path / "nothing")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"data_pipeline prepare: {tmp_path / 'nothing'}: no such file or directory"]
    command += ["--tokenizer", str(tokenizer_directory)]
    assert main(command) == 1
    assert "broken JSON: 1 (a.jsonl:81" in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--reject_threshold", "0.05"]) == 0
    printed = capsys.readouterr().out
    assert "80 documents" in printed and "rejected, broken JSON: 1 (a.jsonl:81" in printed
    for wrong in (["--reject_threshold", "2"], ["--workers", "many"], ["--speed", "9"]):
        with pytest.raises(SystemExit) as end:
            main([*command, *wrong])
        assert end.value.code == 2
        assert wrong[0].lstrip("-") in capsys.readouterr().err
