"""SentenceSource: sentences of distinct records, a pure function of seed and number, in any mixture and any process."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ShardError
from data_pipeline.__main__ import main
from data_pipeline.errors import SourceError
from data_pipeline.identity import fingerprint
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order
from data_pipeline.shards.sentence_source import SentenceSource
from data_pipeline.shards.token_source import IGNORED_LABEL, TokenSource

N = 4
"""Tokens per image."""
CODES = 500


def records(count: int, images: int = 2, first: int = 0) -> list[list[int]]:
    """Records that tell their number: record c, place j has id (31 c + j) % CODES."""
    return [[(31 * number + place) % CODES for place in range(images * N)] for number in range(first, first + count)]


@pytest.fixture
def write_images(write_shards):
    """A function (records per shard, images per record) -> directory."""

    def write(counts: list[int], images: int = 2, name: str = "images", **options: object) -> Path:
        starts = np.cumsum([0, *counts])
        shards = [records(count, images, int(start)) for start, count in zip(starts, counts, strict=False)]
        return write_shards(shards, name, **({"vocab_size": CODES, "tokens_per_image": N} | options))

    return write


def whole(sample: dict[str, np.ndarray]) -> list[int]:
    """The sentence that inputs and labels were cut from."""
    assert sample["input_ids"][1:].tolist() == sample["labels"][:-1].tolist()
    return [*sample["input_ids"].tolist(), int(sample["labels"][-1])]


@pytest.mark.parametrize(("images", "per_sentence"), [(1, 8), (2, 8), (4, 8), (8, 8), (2, 2)])
def test_a_sentence_is_the_ids_of_its_records(write_images, images: int, per_sentence: int) -> None:
    source = SentenceSource(write_images([5, 9, 3], images), per_sentence, passes=3, seed=1, verify=True)
    all_records = records(17, images)
    per_pass = 17 // (per_sentence // images)
    assert len(source) == 3 * per_pass and source.images_per_record == images
    for index in range(len(source)):
        sample = source.sample(index)
        chosen = source.records_of(index)
        assert whole(sample) == [token for record in chosen for token in all_records[record]]
        assert len(set(chosen)) == len(chosen) == per_sentence // images
        assert all(array.shape == (per_sentence * N - 1,) and array.dtype == np.int64 for array in sample.values())
        assert sample["position_ids"].tolist() == list(range(per_sentence * N - 1))
        assert all(0 <= token < CODES for token in whole(sample))
    assert source.tokens_per_sample == per_sentence * N - 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 40), per_sentence=st.integers(1, 8), passes=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_a_pass_deals_every_record_at_most_once(
    write_images, tmp_path_factory, count: int, per_sentence: int, passes: int, seed: int
) -> None:
    directory = write_images([count], name=tmp_path_factory.mktemp("any").name)
    source = SentenceSource(directory, 2 * per_sentence, passes, seed)
    for deal in range(passes):
        numbers = range(deal * source.sentences_per_pass, (deal + 1) * source.sentences_per_pass)
        dealt = Counter(record for index in numbers for record in source.records_of(index))
        assert set(dealt) <= set(range(count))
        if count >= per_sentence:
            assert max(dealt.values()) == 1 and len(dealt) == count // per_sentence * per_sentence
        else:
            assert len(dealt) == count and max(dealt.values()) - min(dealt.values()) <= 1


def test_code_zero_is_a_label_and_no_label_is_ignored(write_shards) -> None:
    directory = write_shards([[[0] * 2 * N] * 4], vocab_size=CODES, tokens_per_image=N)
    sample = SentenceSource(directory, 8).sample(0)
    assert (sample["labels"] == 0).all() and sample["labels"].size == 8 * N - 1


def test_sentences_are_a_pure_function_of_seed_and_number(write_images) -> None:
    directory = write_images([2000])
    source = SentenceSource(directory, 8, passes=2, seed=3)
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 4000
    for index in (999, 0, 500, 0):
        assert np.array_equal(copy.sample(index)["input_ids"], source.sample(index)["input_ids"])
    assert source.records_of(0) != source.records_of(500), "every pass has its own deal"
    assert source.records_of(0) != SentenceSource(directory, 8, seed=4).records_of(0)
    # More passes only add sentences.
    longer = SentenceSource(directory, 8, passes=5, seed=3)
    assert all(longer.records_of(index) == source.records_of(index) for index in range(len(source)))


def test_documents_name_the_records(write_images) -> None:
    directory = write_images([5, 9, 3])
    source = SentenceSource(directory, 8)
    for index in range(len(source)):
        tokens = whole(source.sample(index))
        spans = source.documents(index)
        assert [span.row_start for span in spans] == [0, 2 * N, 4 * N, 6 * N]
        for span in spans:
            stored = np.fromfile(directory / span.shard, "<u2")[span.start : span.stop]
            assert span.start == span.document * 2 * N
            assert stored.tolist() == tokens[span.row_start : span.row_start + span.tokens]


def test_task_shares_follow_the_weights(write_images) -> None:
    """10,000 draws from three tasks of very unequal size; every sentence is of one task."""
    tasks = [
        SentenceSource(write_images([count], name=name, tokenizer_hash="same"), 8, passes)
        for name, count, passes in (("head", 440, 1), ("mid", 8, 7), ("tail", 4, 9))
    ]
    weights = [0.5, 0.3, 0.2]
    mixture = Mixture(tasks, weights)
    order = Order(mixture.sizes, 8, seed=0, weights=weights)
    drawn = Counter(mixture.locate(index)[0] for step in range(1250) for index in order.batch(step).tolist())
    for task, share in enumerate(weights):
        assert abs(drawn[task] - 10_000 * share) <= 3 * np.sqrt(10_000 * share * (1 - share))
    # The global batch of a step is arithmetic: another object, asked out of order, serves the same sentences.
    again = Mixture([pickle.loads(pickle.dumps(task)) for task in tasks], weights)
    for step in (900, 3):
        for index in Order(again.sizes, 8, seed=0, weights=weights).batch(step).tolist():
            assert whole(again.sample(index)) == whole(mixture.sample(index))


def test_identity_names_what_sentences_depend_on(write_images, tmp_path: Path) -> None:
    source = SentenceSource(write_images([20]), 8, 2, 5)
    moved = SentenceSource(source.directory.rename(tmp_path / "moved"), 8, 2, 5)
    assert fingerprint(moved.identity()) == fingerprint(source.identity())
    for arguments in ((4, 2, 5), (8, 3, 5), (8, 2, 6)):
        other = SentenceSource(moved.directory, *arguments)
        assert fingerprint(other.identity()) != fingerprint(source.identity())
    with pytest.raises(SourceError, match="sequence_length differs: source 0 has 31, source 1 has 15"):
        Mixture([moved, SentenceSource(moved.directory, 4)])


def test_records_also_pack_as_plain_tokens(write_images) -> None:
    for images in (1, 2, 4):
        source = TokenSource(write_images([6, 6], images, name=f"plain{images}"), images * N)
        sample = source.sample(1)
        assert sample["input_ids"].tolist() == records(2, images)[1]
        assert sample["labels"].tolist() == [*records(2, images)[1][1:], IGNORED_LABEL]
        assert source.meta.bos_token_id is None and source.meta.tokens_per_image == N


def test_what_cannot_make_sentences_is_refused(write_images, write_shards) -> None:
    pairs = write_images([6])
    with pytest.raises(SourceError, match=r"hold 2 images each, which do not fill a sentence of 7; .*multiple of 2"):
        SentenceSource(pairs, 7)
    with pytest.raises(SourceError, match="passes: expected at least 1, found 0"):
        SentenceSource(pairs, passes=0)
    with pytest.raises(SourceError, match="sentence 1 asked for, but there are 1"):
        SentenceSource(pairs).sample(1)
    with pytest.raises(SourceError, match="these shards hold text, not images"):
        SentenceSource(write_shards([[[5, 6, 7]]], name="text"))
    with pytest.raises(ShardError, match="made by tokenizer tokenizer-a, but this run uses other"):
        SentenceSource(pairs, tokenizer_hash="other")
    mixed = write_shards([records(3), [*records(2), *records(1, 1)]], "mixed", tokens_per_image=N)
    with pytest.raises(SourceError, match=r"mixed/00001\.ds: record 2 has 4 ids, but the first .* has 8"):
        SentenceSource(mixed)
    odd = write_shards([[[1, 2, 3]]], "odd", tokens_per_image=N)
    with pytest.raises(SourceError, match="records of 3 ids are no whole number of images of 4"):
        SentenceSource(odd)
    with pytest.raises(SourceError, match="holds no record"):
        SentenceSource(write_shards([], "none", tokens_per_image=N))


def test_replay_names_the_records_of_a_step(write_images, tmp_path: Path, capsys) -> None:
    directories = [write_images([count], name=name) for name, count in (("head", 40), ("tail", 3))]
    sources = [SentenceSource(directory, 8, 2, 7) for directory in directories]
    order = Order([len(source) for source in sources], 4, seed=5, weights=[0.5, 0.5])
    description = {
        "kind": "sentences",
        "shards": [str(directory) for directory in directories],
        "images_per_sentence": 8,
        "passes": 2,
        "sentence_seed": 7,
    }
    (tmp_path / "order.json").write_text(json.dumps(order.identity() | description))
    assert main(["replay", "--run", str(tmp_path), "--step", "11", "--json", "true", "--characters", "0"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    mixture = Mixture(sources)
    for row, index in enumerate(order.batch(11).tolist()):
        source, inner = mixture.locate(index)
        entries = [entry for entry in found if entry["row"] == row]
        assert [entry["document"] for entry in entries] == sources[source].records_of(inner)
        assert {entry["directory"] for entry in entries} == {str(directories[source])}
        ids = " ".join(entry["text"] for entry in entries).split()
        assert list(map(int, ids)) == mixture.sample(index)["input_ids"].tolist()
    assert main(["replay", "--run", str(tmp_path), "--step", "11", "--rows", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("  00000.ds document ")
