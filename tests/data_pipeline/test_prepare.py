"""prepare: the same shards from every format and any number of workers, resumed after any kill, never overwritten."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from common.errors import ShardError
from common.token_shards import META_FILE, Meta
from data_pipeline.errors import PrepareError
from data_pipeline.shards.parts import make_plan
from data_pipeline.shards.prepare import prepare
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.read_part import RejectLog, merge_reject_logs, read_unit
from data_pipeline.shards.token_source import TokenSource
from data_pipeline.shards.workspace import Workspace

from .conftest import TEXTS

PLAN, SHARD = 1, 2
"""How often the plan and a shard are flushed to the disk."""


def run(corpus: Path | str, tokenizer: Path, output: Path, **options: object) -> Meta:
    return prepare(PrepareConfig([str(corpus)], str(output), str(tokenizer), **({"workers": 1} | options)))


def documents(output: Path) -> list[list[int]]:
    """The token ids of every document, through the index files."""
    meta = Meta.load(output)
    found = []
    for shard in meta.shards:
        tokens = np.fromfile(output / shard.file, meta.dtype)
        ends = np.fromfile(output / f"{shard.file}.index", "<u8").astype(int)
        found += [part.tolist() for part in np.split(tokens, ends[:-1])]
    return found


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def texts(output: Path) -> list[str]:
    backend = Tokenizer.from_file(str(output / "tokenizer" / "tokenizer.json"))
    assert all(document[0] == 1 and document[-1] == 2 for document in documents(output))
    return [backend.decode(document[1:-1], skip_special_tokens=False) for document in documents(output)]


def test_shards_hold_the_documents_in_order(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    meta = run(corpus, tokenizer_directory, output, part_bytes=5000)
    assert texts(output) == TEXTS
    # "<s>" and "</s>" spelled out in a text stay text: only the document's own borders are special.
    assert all(not {1, 2} & set(document[1:-1]) for document in documents(output))
    assert len(meta.shards) > 2
    assert meta.documents == len(TEXTS) and meta.bytes == sum(len(text.encode()) for text in TEXTS)
    assert meta.tokens == sum(map(len, documents(output)))
    assert not (output / ".prepare").exists() and not list(output.glob("*.partial"))
    source = TokenSource(output, 64, verify=True, tokenizer_hash=meta.tokenizer_hash, vocab_size=meta.vocab_size)
    assert len(source) == (meta.tokens - 1) // 64


def test_datatrove_reads_the_shards(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    from datatrove.utils.dataset import DatatroveFileDataset

    run(corpus, tokenizer_directory, tmp_path / "out")
    path = tmp_path / "out" / "00000.ds"
    theirs = DatatroveFileDataset(str(path), seq_len=63, return_positions=True)
    ours = TokenSource(tmp_path / "out", 64)
    for index in range(len(theirs)):
        assert theirs[index]["input_ids"].tolist() == ours.sample(index)["input_ids"].tolist()
    starts = np.flatnonzero(theirs[0]["positions"] == 0).tolist()
    assert starts == np.flatnonzero(ours.sample(0)["position_ids"] == 0).tolist()


def test_real_text_survives(real_data: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    files = [real_data / "text" / language / "valid.jsonl.gz" for language in ("en", "zh")]
    prepare(PrepareConfig([str(file) for file in files], str(tmp_path / "out"), str(tokenizer_directory), workers=1))
    originals = [json.loads(line)["text"] for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert texts(tmp_path / "out") == originals


def write_formats(directory: Path) -> dict[str, Path]:
    """`TEXTS`, without line ends, in every format that prepare reads."""
    directory.mkdir()
    lines = [text.replace("\n", " ").strip() for text in TEXTS]
    jsonl = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines).encode()
    paths = {
        name: directory / f"corpus.{name}" for name in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "txt.gz")
    }
    paths["jsonl"].write_bytes(jsonl)
    paths["jsonl.gz"].write_bytes(gzip.compress(jsonl))
    paths["jsonl.zst"].write_bytes(zstandard.compress(jsonl))
    pq.write_table(pa.table({"text": lines, "other": list(range(len(lines)))}), paths["parquet"], row_group_size=7)
    text = "\n\n".join(lines).encode() + b"\n"
    paths["txt"].write_bytes(text)
    paths["txt.gz"].write_bytes(gzip.compress(text))
    dataset = datasets.Dataset.from_dict({"text": lines})
    dataset.save_to_disk(directory / "dataset")
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(3))}).save_to_disk(directory / "with_splits")
    return paths | {"dataset": directory / "dataset", "with_splits": directory / "with_splits"}


def test_every_format_gives_the_same_documents(tokenizer_directory: Path, tmp_path: Path) -> None:
    expected = None
    for name, path in write_formats(tmp_path / "formats").items():
        output = tmp_path / name
        run(path, tokenizer_directory, output, text_files="lines", part_bytes=2000)
        expected = expected or documents(output)
        assert documents(output) == expected, name
    assert len(expected or []) == len(TEXTS)


def test_text_files_are_one_document_each(tokenizer_directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "books" / "deep"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_text("second\n\nbook\n")
    (folder.parent / "a.txt").write_text("first book")
    run(folder.parent, tokenizer_directory, tmp_path / "out")
    assert texts(tmp_path / "out") == ["first book", "second\n\nbook\n"]


def test_hub_data_sets_are_loaded_by_name(tokenizer_directory: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None, split: str) -> datasets.Dataset:
        asked.append((name, configuration, split))
        return datasets.Dataset.from_dict({"body": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    run("owner/corpus@small", tokenizer_directory, tmp_path / "out", text_field="body", split="test")
    assert set(asked) == {("owner/corpus", "small", "test")}
    assert texts(tmp_path / "out") == TEXTS


def test_the_number_of_workers_changes_no_byte(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    run(corpus, tokenizer_directory, tmp_path / "one", part_bytes=4000)
    run(corpus, tokenizer_directory, tmp_path / "three", part_bytes=4000, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(list((tmp_path / "one").glob("*.ds"))) > 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part_bytes=st.integers(1, 400), kind=st.sampled_from(["jsonl", "txt"]), data=st.data())
def test_any_cut_reads_the_same_documents_and_numbers(tmp_path_factory, part_bytes: int, kind: str, data) -> None:
    """Cutting a file anywhere loses, doubles or renumbers no line, with any mixture of good and bad ones."""
    good = json.dumps({"text": "x" * 9}).encode() if kind == "jsonl" else b"some text"
    bad = b"{broken" if kind == "jsonl" else b"\xff bad"
    chosen = data.draw(st.lists(st.sampled_from([good, bad, b"", b"  "]), min_size=1, max_size=30))
    directory = tmp_path_factory.mktemp("cut")
    path = directory / f"a.{kind}"
    path.write_bytes(b"\n".join(chosen) + data.draw(st.sampled_from([b"", b"\n"])))
    if not path.stat().st_size:
        return
    config = PrepareConfig([str(path)], "out", "none", text_files="lines", part_bytes=part_bytes)
    found, logs = [], []
    for rank, part in enumerate(make_plan(config).parts):
        log = RejectLog()
        for unit in part:
            log.begin(unit)
            found += [document.text for document in read_unit(unit, "text", "train", log)]
        logs.append(directory / str(rank))
        log.save(logs[-1])
    assert len(found) == chosen.count(good)
    rejected = merge_reject_logs(logs)
    assert sum(entry.count for entry in rejected.values()) == chosen.count(bad)
    lines = [example.line for entry in rejected.values() for example in entry.examples]
    assert lines == [number for number, line in enumerate(chosen, 1) if line == bad][:3]


def test_the_same_call_again_does_nothing(corpus: Path, tokenizer_directory: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    first = run(corpus, tokenizer_directory, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run(corpus, tokenizer_directory, output, workers=2) == first
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert "already prepared from the same input and tokenizer; nothing to do" in capsys.readouterr().err


def test_shards_of_other_inputs_are_not_overwritten(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(corpus, tokenizer_directory, output)
    before = contents(output)
    with pytest.raises(
        PrepareError,
        match=r"out: holds shards of another input .*text_field: 'text' -> 'id'.*remove .*out to begin anew",
    ):
        run(corpus, tokenizer_directory, output, text_field="id")
    changed = tmp_path / "changed"
    changed.mkdir()
    description = json.loads((tokenizer_directory / "tokenizer.json").read_text())
    description["added_tokens"][3]["content"] = "<padding>"
    (changed / "tokenizer.json").write_text(json.dumps(description))
    config = json.loads((tokenizer_directory / "tokenizer_config.json").read_text())
    (changed / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<padding>"}))
    with pytest.raises(PrepareError, match=r"another input or tokenizer \(tokenizer\.hash: '\w+' -> '\w+'"):
        run(corpus, changed, output)
    with corpus.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(PrepareError, match=r"files\[0\]\.hash: '\w+' -> '\w+'; files\[0\]\.size: \d+ -> \d+"):
        run(corpus, tokenizer_directory, output)
    assert contents(output) == before


def test_damaged_output_is_not_taken_for_complete(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    run(corpus, tokenizer_directory, tmp_path / "out")
    with (tmp_path / "out" / "00000.ds").open("ab") as file:
        file.truncate(10)
    with pytest.raises(ShardError, match=r"00000\.ds: truncated: expected \d+ bytes, found 10"):
        run(corpus, tokenizer_directory, tmp_path / "out")
    (tmp_path / "out" / META_FILE).unlink()
    with pytest.raises(PrepareError, match=r"holds \.ds files that were not written by prepare"):
        run(corpus, tokenizer_directory, tmp_path / "out")


def test_killed_runs_continue_without_redoing_parts(tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "large.jsonl"
    corpus.write_text("".join(json.dumps({"text": text * 40}) + "\n" for text in TEXTS * 2), encoding="utf-8")
    output, options = tmp_path / "out", {"part_bytes": 200_000, "workers": 2}
    arguments = ["--input", str(corpus), "--output", str(output), "--tokenizer", str(tokenizer_directory)]
    arguments += [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "data_pipeline", "prepare", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workspace = Workspace.of(output)
    while not workspace.completion_marker(0).exists() and process.poll() is None:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1], "workers outlive the call that started them"
    assert not (output / META_FILE).exists()
    with pytest.raises(ShardError, match="not a finished shard directory"):
        TokenSource(output, 16)
    parts = len(make_plan(PrepareConfig([str(corpus)], "", "", part_bytes=200_000)).parts)
    complete = [rank for rank in range(parts) if workspace.is_complete(rank)]
    assert 0 < len(complete) < parts
    before = {rank: (output / f"{rank:05d}.ds").stat().st_mtime_ns for rank in complete}
    (output / "00000.ds.elsewhere-1.partial").write_bytes(b"left by the killed call")

    run(corpus, tokenizer_directory, output, part_bytes=200_000)
    assert {rank: (output / f"{rank:05d}.ds").stat().st_mtime_ns for rank in complete} == before
    run(corpus, tokenizer_directory, tmp_path / "uninterrupted", part_bytes=200_000)
    assert contents(output) == contents(tmp_path / "uninterrupted")


def test_unfinished_output_of_other_inputs_is_not_continued(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, full_disk: dict[str, int]
) -> None:
    full_disk["flushes"] = PLAN
    with pytest.raises(PrepareError, match="no space left"):
        run(corpus, tokenizer_directory, tmp_path / "out")
    with pytest.raises(PrepareError, match=r"out: holds unfinished shards of another input .*part_bytes: \d+ -> 3000"):
        run(corpus, tokenizer_directory, tmp_path / "out", part_bytes=3000)


@pytest.fixture
def full_disk(monkeypatch) -> dict[str, int]:
    """Flushing to the disk fails, as on a full one, after the given number of times."""
    left = {"flushes": PLAN + SHARD + 1}

    def fsync(handle: int) -> None:
        left["flushes"] -= 1
        if left["flushes"] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    return left


def test_a_full_disk_is_named_and_nothing_is_lost(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, full_disk: dict[str, int]
) -> None:
    output = tmp_path / "out"
    with pytest.raises(
        PrepareError, match=r"out: no space left on its disk .*no meta\.json was written; free some space"
    ):
        run(corpus, tokenizer_directory, output, part_bytes=4000)
    assert not (output / META_FILE).exists() and not list(output.glob("*.partial"))
    assert len(list(output.glob("*.ds"))) == 1

    full_disk["flushes"] = 10_000
    run(corpus, tokenizer_directory, output, part_bytes=4000)
    assert texts(output) == TEXTS

    again = tmp_path / "again"
    full_disk["flushes"] = PLAN + SHARD * len(list(output.glob("*.ds")))  # enough for all but meta.json
    with pytest.raises(PrepareError, match="no space left"):
        run(corpus, tokenizer_directory, again, part_bytes=4000)
    assert not (again / META_FILE).exists()


def test_an_interrupt_ends_the_command(tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "large.jsonl"
    corpus.write_text("".join(json.dumps({"text": text * 100}) + "\n" for text in TEXTS * 4), encoding="utf-8")
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "out"), "--tokenizer", str(tokenizer_directory)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "data_pipeline", "prepare", *arguments, "--workers=1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not Workspace.of(tmp_path / "out").plan.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and not (tmp_path / "out" / META_FILE).exists()
    assert "data_pipeline prepare: interrupted" in errors and "Traceback" not in errors
