"""Stretches encode to what the whole text encodes to, for the pipelines that are promised that, and for no others."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from tokenizer.compression.sliceable import backend_encoder
from tokenizer.compression.stretches import BORDER, count_stretches, cuts_independently

PIECES = [
    "a",
    "Zb",
    "don't",
    "'s",
    " ",
    "  ",
    "\n",
    "\t",
    " \n",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u3000",
    "1",
    "42",
    ",",
    ". ",
    '"',
    "-",
    "(",
    "é",
    "中文",
    "😀",
    "«中»",
]


@pytest.fixture(scope="module")
def backend(trained) -> Tokenizer:
    return Tokenizer.from_file(str(trained("byte_level") / "tokenizer.json"))


def with_digits(backend: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(backend.to_str())
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    copy.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return copy


@pytest.mark.parametrize("digits", [False, True])
def test_stretches_give_the_ids_of_the_text(backend, digits):
    pipeline = with_digits(backend) if digits else backend
    assert cuts_independently(pipeline)
    encode = backend_encoder(pipeline)

    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=30))
    def holds(text: str) -> None:
        assert [id_ for ids in encode(BORDER.split(text)) for id_ in ids] == encode([text])[0]

    holds()


def test_counts_are_those_of_the_corpus(backend, corpus_texts):
    encode = backend_encoder(backend)
    expected = Counter(id_ for ids in encode(corpus_texts) for id_ in ids)
    counts = count_stretches(corpus_texts, encode, backend.get_vocab_size())
    assert {id_: count for id_, count in enumerate(counts.tolist()) if count} == expected
    assert count_stretches([], encode, 10).tolist() == [0] * 10


def test_other_pipelines_get_no_promise(backend, trained):
    for kind in ("bpe", "unigram"):
        assert not cuts_independently(Tokenizer.from_file(str(Path(trained(kind)) / "tokenizer.json")))
    content = json.loads(backend.to_str())
    for change in ({"add_prefix_space": True}, {"use_regex": False}):
        altered = {**content, "pre_tokenizer": content["pre_tokenizer"] | change}
        assert not cuts_independently(Tokenizer.from_str(json.dumps(altered)))
    for symbol in ("two words", "a-b", AddedToken("x", rstrip=True), AddedToken("x", single_word=True)):
        wide = Tokenizer.from_str(backend.to_str())
        wide.add_tokens([symbol])
        assert not cuts_independently(wide)
    normalised = Tokenizer.from_str(backend.to_str())
    normalised.normalizer = normalizers.NFKC()
    assert not cuts_independently(normalised)
    bare = Tokenizer.from_str(backend.to_str())
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    assert not cuts_independently(bare)
