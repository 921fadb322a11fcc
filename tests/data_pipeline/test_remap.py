"""`remap`: shards of a compressed tokenizer, byte for byte what `prepare` would write from the text."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ShardError
from common.token_shards import Meta, sha256_of
from common.vocabulary_map import VocabularyMapError
from data_pipeline.__main__ import main
from data_pipeline.errors import RemapError
from data_pipeline.shards.prepare import prepare
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.remap import RemapConfig, remap
from tests.trained import write_jsonl
from tokenizer.compression.compress import compress
from tokenizer.compression.compress_config import CompressConfig

CASES = {
    "bpe": ("bpe", True, "stretches"),
    "byte_level": ("byte_level", True, "documents"),
    "unigram": ("unigram", True, "text"),
    "open_bpe": ("bpe", False, "text"),
}
WILD = ["  two  spaces ", "\U0001f600 é \u200b\n\n\tx", "�" * 3, "未知的字符 mixed 12345", "<|im_start|> a"]


@pytest.fixture(scope="module")
def prepared(trained, corpus_texts, tmp_path_factory):
    """A function: case -> (text, old shards, compressed tokenizer), made on first use."""
    made: dict[str, tuple[Path, Path, Path]] = {}

    def get(case: str) -> tuple[Path, Path, Path]:
        if case not in made:
            kind, closure, _ = CASES[case]
            folder = tmp_path_factory.mktemp(case)
            text = write_jsonl(folder / "text.jsonl", [*corpus_texts, *WILD])
            write_shards(text, trained(kind), folder / "old")
            compress(
                CompressConfig(
                    str(trained(kind)),
                    [str(text)],
                    1100,
                    str(folder / "small"),
                    closure=closure,
                    workers=1,
                    sample_bytes=10_000,
                )
            )
            made[case] = (text, folder / "old", folder / "small")
        return made[case]

    return get


def write_shards(text: Path, tokenizer: Path, output: Path, **changes: Any) -> Meta:
    return prepare(PrepareConfig([str(text)], str(output), str(tokenizer), workers=1, **changes))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("case", CASES)
def test_equal_to_preparing_the_text(prepared, tmp_path, case):
    text, old, small = prepared(case)
    write_shards(text, small, tmp_path / "expected")
    report = remap(RemapConfig(str(old), str(small), str(tmp_path / "found"), check_documents="all", workers=1))
    assert report.mode == CASES[case][2]
    assert contents(tmp_path / "found") == contents(tmp_path / "expected")
    assert report.after.tokens > report.before.tokens  # dropped pieces cost tokens: the case is not trivial
    assert report.after.documents == report.before.documents


def test_workers_and_checks_do_not_change_the_result(prepared, tmp_path):
    _, old, small = prepared("bpe")
    for name, changes in {"a": {"workers": 2}, "b": {"workers": 1, "check_documents": 0}}.items():
        remap(RemapConfig(str(old), str(small), str(tmp_path / name), **changes))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_second_call_does_nothing_and_an_interrupted_one_goes_on(prepared, tmp_path, capsys, monkeypatch):
    _, old, small = prepared("bpe")
    config = RemapConfig(str(old), str(small), str(tmp_path / "out"), workers=1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.shards.remap._finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remap(config)
    assert not (tmp_path / "out" / "meta.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.ds")}
    assert finished
    remap(config)
    assert "continues an earlier call; 1 of 1 shards are complete" in capsys.readouterr().err
    assert finished == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.ds")}
    assert not (tmp_path / "out" / ".remap").exists()
    before = contents(tmp_path / "out")
    remap(config)
    assert "already remapped; nothing to do" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_what_cannot_be_exact_is_refused(prepared, trained, tmp_path):
    _, old, small = prepared("bpe")
    _, byte_level, _ = prepared("byte_level")
    with pytest.raises(RemapError, match=r"made by tokenizer \w{12}, but .* was cut out of \w{12}; compress"):
        remap(RemapConfig(str(byte_level), str(small), str(tmp_path / "a")))
    with pytest.raises(VocabularyMapError, match="not found; give the --output"):
        remap(RemapConfig(str(old), str(trained("bpe")), str(tmp_path / "b")))
    other = tmp_path / "other"
    shutil.copytree(small, other)
    mapping = json.loads((other / "vocabulary_map.json").read_text())
    (other / "vocabulary_map.json").write_text(json.dumps(mapping | {"hash": "0" * 64}))
    with pytest.raises(RemapError, match=r"other: altered: expected tokenizer 000000000000, found"):
        remap(RemapConfig(str(old), str(other), str(tmp_path / "c")))
    for name in "abc":
        assert not (tmp_path / name / "meta.json").exists()


def test_altered_shards_are_refused(prepared, tmp_path):
    _, old, small = prepared("bpe")
    altered = tmp_path / "old"
    shutil.copytree(old, altered)
    shard = next(altered.glob("*.ds"))
    tokens = np.fromfile(shard, "<u2")
    tokens[5] += 1
    tokens.tofile(shard)
    with pytest.raises(RemapError, match=r"\.ds: altered since it was prepared"):
        remap(RemapConfig(str(altered), str(small), str(tmp_path / "out"), workers=1))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ShardError):
        remap(RemapConfig(str(altered), str(small), str(tmp_path / "out2"), workers=1))


def test_ids_that_the_donor_would_not_give_are_refused(prepared, tmp_path):
    """Two pieces that the donor would have merged decode to a text, but are not what it makes of that text."""
    _, old, small = prepared("bpe")
    forged = tmp_path / "old"
    shutil.copytree(old, forged)
    meta = Meta.load(forged)
    shard = forged / meta.shards[0].file
    model = json.loads((old / "tokenizer" / "tokenizer.json").read_text())["model"]
    tokens = np.fromfile(shard, meta.dtype)
    tokens[2:4] = [model["vocab"][part] for part in model["merges"][0]]
    tokens.tofile(shard)
    content = json.loads((forged / "meta.json").read_text())
    content["shards"][0]["sha256"] = sha256_of(shard)
    (forged / "meta.json").write_text(json.dumps(content))
    with pytest.raises(RemapError, match=r"document 0 is not what the shards' tokenizer makes of the text"):
        remap(RemapConfig(str(forged), str(small), str(tmp_path / "out"), check_documents="all", workers=1))


def test_other_outputs_are_left_alone(prepared, trained, tmp_path):
    text, old, small = prepared("bpe")
    write_shards(text, trained("bpe"), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(RemapError, match="out: holds shards of something else"):
        remap(RemapConfig(str(old), str(small), str(tmp_path / "out"), workers=1))
    assert contents(tmp_path / "out") == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "00000.ds").write_bytes(b"mine")
    with pytest.raises(RemapError, match=r"foreign: holds \.ds files that were not written by remap"):
        remap(RemapConfig(str(old), str(small), str(foreign), workers=1))
    assert (foreign / "00000.ds").read_bytes() == b"mine"


def test_the_command(prepared, tmp_path, capsys):
    _, old, small = prepared("bpe")
    words = ["remap", "--input", str(old), "--tokenizer", str(small), "--output", str(tmp_path / "out")]
    assert main([*words, "--workers", "1"]) == 0
    assert "mode stretches; vocabulary 1,600 -> 1,100, 16 -> 16 bits a token" in capsys.readouterr().out
    assert main(["remap", "--input", str(tmp_path / "no"), *words[3:]]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"data_pipeline remap: {tmp_path / 'no'}")


def test_shards_of_images_are_refused(write_shards) -> None:
    directory = write_shards([[[1, 2, 3, 4]]], tokens_per_image=4)
    with pytest.raises(RemapError, match="these shards hold images; only text can be brought to another tokenizer"):
        remap(RemapConfig(str(directory), str(directory / "none"), str(directory / "out")))
