"""Captions: CLIP's tokens, the charset they are brought to, and the end that truncation keeps."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tokenizer.characters import CHARSETS, CharacterTokenizer
from tokenizer.clip_captions import BPE_FILE, MERGES, CaptionError, CaptionTokenizer, ClipEncoding

CHARACTERS = CharacterTokenizer(CHARSETS["94"])
BEGIN, END = 256, 257


def read(word: str, length: int = 26) -> np.ndarray:
    """Ids as a recogniser predicts them: no [B], nonsense after [E]."""
    ids = CHARACTERS.encode(word)[1:]
    return np.concatenate([ids, np.full(length - len(ids), 7)])


def test_bytes_lower_case_and_padding():
    captions = CaptionTokenizer(CHARACTERS, CHARSETS["36"], None)
    ids = captions(np.stack([read("It's-5"), read(""), read("ABC")])[:, None])
    assert ids.shape == (3, 1, 16) and ids.dtype == np.int64
    assert ids[0, 0].tolist() == [BEGIN, *b"its5", END] + [0] * 10
    assert ids[1, 0].tolist() == [BEGIN, END] + [0] * 14
    cased = CaptionTokenizer(CHARACTERS, CHARSETS["94"], None)
    assert cased(read("It's"))[:6].tolist() == [BEGIN, *b"It's", END]


def test_truncation_keeps_the_end():
    captions = CaptionTokenizer(CHARACTERS, CHARSETS["36"], None)
    for length in (13, 14, 15, 25):
        ids = captions(read("abcdefghijklmnopqrstuvwxyz"[:length]))
        assert len(ids) == 16 and ids[min(length, 14) + 1] == END
        assert bytes(ids[1 : min(length, 14) + 1].tolist()) == b"abcdefghijklmn"[:length]


def test_the_tokens_are_those_of_clip(real_data):
    path = real_data / "tokenizers" / "clip" / BPE_FILE
    encoding = ClipEncoding(path)
    assert encoding.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    captions = CaptionTokenizer(CHARACTERS, CHARSETS["36"], path)
    assert captions(read("Hello!"))[:4].tolist() == [49406, 3306, 49407, 0]
    assert captions(read("zqxj9zqxj9zqxj9zqxj9"))[15] == 49407


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["#version", "i n"], r"holds 1 merges; CLIP takes 48,894"),
        (["#version", "i n", "three of them"], r"line 3: expected two tokens"),
        (["#version", *(["i n"] * MERGES)], r"two merges give the same token"),
        (["#version", *(f"x{n} y" for n in range(MERGES))], r"not the merges of CLIP"),
    ],
)
def test_other_files_are_refused(tmp_path, lines, message):
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(CaptionError, match=message):
        ClipEncoding(path)


def test_files_that_are_not_gzip_are_refused(tmp_path):
    (tmp_path / "x.gz").write_bytes(b"junk")
    for name in ("x.gz", "no.txt"):
        with pytest.raises(CaptionError, match="cannot be read as CLIP's merges"):
            ClipEncoding(tmp_path / name)
