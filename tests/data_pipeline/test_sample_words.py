"""Words split into seen and unseen ones, by the word alone."""

from __future__ import annotations

import gzip
import json
import lzma

import pytest

from data_pipeline.__main__ import main
from data_pipeline.demo.words import SampleWordsConfig, sample_words
from data_pipeline.errors import SourceError
from data_pipeline.words.labels import LabelRules
from data_pipeline.words.lists import read_words
from tests.tokenizer.file_cases import zst
from tokenizer.characters import CHARSETS


def read(folder, split):
    return (folder / f"{split}.txt").read_text(encoding="utf-8").split()


def test_no_word_is_on_both_sides_and_more_text_moves_none(tmp_path):
    words = [f"word{number}" for number in range(400)]
    (tmp_path / "few.txt").write_text("\n".join(words[:200]))
    documents = [json.dumps({"text": f"{word.upper()}, {word}. a"}) for word in words]
    (tmp_path / "more.jsonl").write_text("\n".join(documents))
    for name, file in (("few", "few.txt"), ("more", "more.jsonl")):
        text = sample_words(SampleWordsConfig([str(tmp_path / file)], str(tmp_path / name), shortest=2))
    assert "1 left out for their length" in text and "removed characters: ',' (400) '.' (400)" in text
    few, more = ({split: set(read(tmp_path / name, split)) for split in ("train", "valid")} for name in ("few", "more"))
    assert few["train"] | few["valid"] == set(words[:200]) and more["train"] | more["valid"] == set(words)
    assert few["train"] < more["train"] and few["valid"] < more["valid"] and not more["train"] & more["valid"]
    assert 20 <= len(more["valid"]) <= 60


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--words", "{words}", "--longest", "2"], 1, "0 words of 1 to 2 characters, none of them for train.txt"),
        (["--words", "nowhere.txt"], 1, "nowhere.txt: no such word list"),
        (["--words", "{words}", "--valid_fraction", "0"], 2, "valid_fraction: must be between 0 and 1"),
        (["--words", "{words}", "--shortest", "9", "--longest", "8"], 2, "expected 1 <= shortest <= longest"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, code, message, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("lamp\nriver\n")
    filled = [word.format(words=tmp_path / "words.txt") for word in arguments]
    try:
        found = main(["sample-words", *filled, "--output", str(tmp_path / "out")])
    except SystemExit as end:
        found = end.code
    assert found == code and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\xef\xbb\xbfsun moon\r\nstar\n"),
        ("a.TXT.GZ", gzip.compress(b"sun\nmoon\nstar\n", mtime=0)),
        ("a.tsv.xz", lzma.compress(b"sun moon\t7\nstar\t9\n")),
        ("a.txt.zst", zst(b"sun\nmoon\nstar\n")),
        ("a.json", b'[{"text": "sun moon"}, {"text": "star", "p": NaN}]'),
    ],
)
def test_word_lists_are_opened_like_every_text(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    words, report = read_words([str(tmp_path / name)], LabelRules(CHARSETS["36"]))
    assert words == ["moon", "star", "sun"] and not report.dropped and not report.altered


def test_broken_lines_of_word_lists_follow_the_switch(tmp_path, capsys):
    lines = "".join(f"word{number}\n" for number in range(200)).encode()
    (tmp_path / "a.txt").write_bytes(lines + b"caf\xe9\n")
    rules = LabelRules(CHARSETS["36"])
    assert len(read_words([str(tmp_path / "a.txt")], rules)[0]) == 200
    assert "a.txt, line 201: not UTF-8 (the byte 0xE9" in capsys.readouterr().err
    assert "caf" in read_words([str(tmp_path / "a.txt")], rules, broken_text="replace")[0]
    with pytest.raises(SourceError, match=r"a\.txt, line 201: not UTF-8"):
        read_words([str(tmp_path / "a.txt")], rules, broken_text="refuse")
    (tmp_path / "b.txt").write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(SourceError, match=r"b\.txt, line 2: .*1 of 2 documents are like that, more than 1%"):
        read_words([str(tmp_path / "b.txt")], rules)
    (tmp_path / "c.txt").write_bytes("sun moon".encode("utf-16"))
    with pytest.raises(SourceError, match="is UTF-16, not UTF-8"):
        read_words([str(tmp_path / "c.txt")], rules)
