"""TokenSource and Mixture: packing, document boundaries, and every kind of damaged shard."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ShardError
from common.token_shards import META_FILE
from data_pipeline.errors import OrderError, SourceError
from data_pipeline.identity import explain_mismatch, fingerprint
from data_pipeline.mixture import Mixture
from data_pipeline.shards.token_source import IGNORED_LABEL, TokenSource


def reference(documents: list[list[int]], length: int) -> list[dict[str, list[int]]]:
    """The samples, made the slow and obvious way: one token at a time."""
    stream = [(token, number) for number, document in enumerate(documents) for token in document]
    samples = []
    for start in range(0, len(stream) - length, length):
        rows: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for place in range(start, start + length):
            (token, document), (following, next_document) = stream[place], stream[place + 1]
            same = place > start and stream[place - 1][1] == document
            rows["input_ids"].append(token)
            rows["labels"].append(following if next_document == document else IGNORED_LABEL)
            rows["position_ids"].append(rows["position_ids"][-1] + 1 if same else 0)
        samples.append(rows)
    return samples


def whole_documents(directory: Path) -> list[list[int]]:
    meta = json.loads((directory / META_FILE).read_text())
    documents = []
    for shard in meta["shards"]:
        tokens = np.fromfile(directory / shard["file"], f"<u{meta['token_bytes']}")
        ends = np.fromfile(directory / f"{shard['file']}.index", "<u8").astype(int)
        documents += [part.tolist() for part in np.split(tokens, ends[:-1])]
    return documents


@pytest.mark.parametrize("length", [1, 2, 7, 32, 150])
def test_samples_equal_the_slow_way(random_shards: Path, length: int) -> None:
    source = TokenSource(random_shards, length, verify=True)
    expected = reference(whole_documents(random_shards), length)
    assert len(source) == len(expected)
    for index, sample in enumerate(expected):
        found = source.sample(index)
        assert {name: array.tolist() for name, array in found.items()} == sample
        assert all(array.dtype == np.int64 for array in found.values())
    assert source.unused_tokens == source.meta.tokens - 1 - length * len(source)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(
        st.lists(st.lists(st.integers(3, 70_000), max_size=12), min_size=1, max_size=5), min_size=1, max_size=5
    ),
    length=st.integers(1, 20),
)
def test_any_shards_give_the_slow_way(write_shards, tmp_path_factory, shards: list, length: int) -> None:
    directory = write_shards(shards, name=tmp_path_factory.mktemp("any").name + "/corpus", vocab_size=70_001)
    documents = whole_documents(directory)
    if sum(map(len, documents)) < length + 1:
        with pytest.raises(SourceError, match="do not make one sample"):
            TokenSource(directory, length)
        return
    source = TokenSource(directory, length, verify=True)
    found = [{name: row.tolist() for name, row in source.sample(i).items()} for i in range(len(source))]
    assert found == reference(documents, length)


def test_without_document_mask_positions_run_through(random_shards: Path) -> None:
    masked, plain = TokenSource(random_shards, 64), TokenSource(random_shards, 64, document_mask=False)
    for index in range(len(plain)):
        assert plain.sample(index)["position_ids"].tolist() == list(range(64))
        assert np.array_equal(plain.sample(index)["labels"], masked.sample(index)["labels"])


@pytest.mark.parametrize("length", [1, 37])
def test_documents_name_exactly_the_tokens_of_the_row(random_shards: Path, length: int) -> None:
    source = TokenSource(random_shards, length)
    for index in range(len(source)):
        row = source.sample(index)
        spans = source.documents(index)
        assert sum(span.tokens for span in spans) == length
        assert [span.row_start for span in spans] == np.flatnonzero(row["position_ids"] == 0).tolist()
        for span in spans:
            tokens = np.fromfile(random_shards / span.shard, "<u2")
            ends = np.concatenate([[0], np.fromfile(random_shards / f"{span.shard}.index", "<u8").astype(int)])
            assert ends[span.document] <= span.start < span.stop <= ends[span.document + 1]
            inside = row["input_ids"][span.row_start : span.row_start + span.tokens]
            assert np.array_equal(tokens[span.start : span.stop], inside)


def test_a_pickled_source_maps_its_files_again(random_shards: Path) -> None:
    source = TokenSource(random_shards, 16)
    pickled = pickle.dumps(source)
    assert len(pickled) < 4000
    copy = pickle.loads(pickled)
    assert np.array_equal(copy.sample(3)["input_ids"], source.sample(3)["input_ids"])


def test_bytes_per_label_leaves_out_what_is_never_predicted(write_shards) -> None:
    source = TokenSource(write_shards([[[5, 6, 7]], [[8, 9]]]), 4)
    assert source.bytes_per_token == 15 / 9
    assert source.bytes_per_label == 15 / 7


def damage_truncate(directory: Path) -> None:
    path = directory / "00001.ds"
    path.write_bytes(path.read_bytes()[:-6])


def damage_lengthen(directory: Path) -> None:
    with (directory / "00001.ds").open("ab") as file:
        file.write(b"12")


def damage_index(directory: Path) -> None:
    path = directory / "00000.ds.index"
    path.write_bytes(path.read_bytes()[:-8])


def damage_missing(directory: Path) -> None:
    (directory / "00002.ds").unlink()


def damage_no_meta(directory: Path) -> None:
    (directory / META_FILE).unlink()


def damage_half_meta(directory: Path) -> None:
    path = directory / META_FILE
    path.write_bytes(path.read_bytes()[:100])


def edit_meta(**fields: object):
    def damage(directory: Path) -> None:
        path = directory / META_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, r"00001\.ds: truncated: expected \d+ bytes, found \d+; copy it again"),
        (damage_lengthen, r"00001\.ds: longer than meta\.json says: expected \d+ bytes, found \d+"),
        (damage_index, r"00000\.ds\.index: truncated: expected 160 bytes, found 152"),
        (damage_missing, r"00002\.ds: named in meta\.json but missing"),
        (damage_no_meta, r"meta\.json: not found, so .* is not a finished shard directory; run"),
        (damage_half_meta, r"meta\.json:\d+: not JSON \(.*; prepare again"),
        (edit_meta(format_version=99), r"expected format_version 1, found 99"),
        (edit_meta(tokens=5), r"tokens is 5 but the shards add up to \d+"),
        (edit_meta(token_bytes=3), r"expected token_bytes 2 or 4, found 3"),
        (edit_meta(vocab_size=100_000), r"vocabulary of 100000 does not fit into token_bytes 2 \(at most 65536\)"),
        (edit_meta(shards=[{"file": "a.ds"}]), r"field missing or of the wrong type"),
        (edit_meta(vocab_size="many"), r"field missing or of the wrong type"),
    ],
)
def test_damaged_shards_are_refused_on_opening(random_shards: Path, damage, message: str) -> None:
    damage(random_shards)
    with pytest.raises(ShardError, match=message):
        TokenSource(random_shards, 16)


def test_a_shard_outside_the_directory_is_refused(random_shards: Path) -> None:
    meta = json.loads((random_shards / META_FILE).read_text())
    meta["shards"][0]["file"] = "../elsewhere.ds"
    edit_meta(**meta)(random_shards)
    with pytest.raises(ShardError, match="not a plain file name"):
        TokenSource(random_shards, 16)


def test_altered_shards_are_found_when_asked_to_verify(random_shards: Path) -> None:
    path = random_shards / "00001.ds"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    TokenSource(random_shards, 16)
    with pytest.raises(ShardError, match=r"00001\.ds: altered: expected sha256 \w{64}, found \w{64}"):
        TokenSource(random_shards, 16, verify=True)


def test_a_token_outside_the_vocabulary_is_named(random_shards: Path) -> None:
    tokens = np.fromfile(random_shards / "00001.ds", "<u2")
    tokens[5] = 5000
    tokens.tofile(random_shards / "00001.ds")
    source = TokenSource(random_shards, 16)
    with pytest.raises(ShardError, match=r"00001\.ds: token 5 is 5000, outside the vocabulary of 1000"):
        [source.sample(index) for index in range(len(source))]


def test_another_tokenizer_or_a_smaller_model_is_refused(random_shards: Path) -> None:
    TokenSource(random_shards, 16, tokenizer_hash="tokenizer-a", vocab_size=1000)
    with pytest.raises(ShardError, match="made by tokenizer tokenizer-a, but this run uses tokenizer-b"):
        TokenSource(random_shards, 16, tokenizer_hash="tokenizer-b")
    with pytest.raises(ShardError, match="up to 999, but the model's vocab_size is 512; set it to 1000 or more"):
        TokenSource(random_shards, 16, vocab_size=512)


def test_sources_that_cannot_serve_a_sample_are_refused(write_shards, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such directory; give the --output"):
        TokenSource(tmp_path / "nowhere", 16)
    with pytest.raises(SourceError, match=r"0 tokens do not make one sample of 4 \+ 1"):
        TokenSource(write_shards([], name="empty"), 4)
    short = write_shards([[[5, 6]]], name="short")
    assert len(TokenSource(short, 3)) == 1
    with pytest.raises(SourceError, match=r"4 tokens do not make one sample of 4 \+ 1; prepare more text or shorten"):
        TokenSource(short, 4)
    with pytest.raises(SourceError, match="sequence_length: expected at least 1"):
        TokenSource(short, 0)
    with pytest.raises(SourceError, match="sample 1 asked for, but there are 1"):
        TokenSource(short, 3).sample(1)


def test_mixture_numbers_its_sources_one_after_the_other(write_shards) -> None:
    directories = [write_shards([[[5] * n]], name=f"source{n}") for n in (30, 9, 50)]
    sources = [TokenSource(directory, 8) for directory in directories]
    mixture = Mixture(sources, [1, 2, 1])
    assert mixture.sizes == [3, 1, 6] and len(mixture) == 10
    expected = [source.sample(index) for source in sources for index in range(len(source))]
    for index, sample in enumerate(expected):
        assert all(np.array_equal(mixture.sample(index)[name], sample[name]) for name in sample)
    assert mixture.locate(4) == (2, 0)
    assert mixture.documents(3) == sources[1].documents(0)
    with pytest.raises(SourceError, match="sample 10 asked for, but there are 10"):
        mixture.sample(10)


def test_mixtures_that_cannot_work_are_refused(write_shards) -> None:
    one = TokenSource(write_shards([[[5] * 20]], name="one"), 8)
    other = TokenSource(write_shards([[[5] * 20]], name="other", tokenizer_hash="tokenizer-b"), 8)
    with pytest.raises(SourceError, match="source 0 has tokenizer-a, source 1 has tokenizer-b"):
        Mixture([one, other])
    with pytest.raises(SourceError, match="sequence_length differs: source 0 has 8, source 1 has 4"):
        Mixture([one, TokenSource(one.directory, 4)])
    with pytest.raises(OrderError, match="expected one per source"):
        Mixture([one], [0.5, 0.5])
    with pytest.raises(SourceError, match="at least one"):
        Mixture([])


def test_fingerprint_follows_the_content_and_not_the_place(random_shards: Path, tmp_path: Path) -> None:
    identity = TokenSource(random_shards, 16).identity()
    moved = random_shards.rename(tmp_path / "moved")
    again = TokenSource(moved, 16).identity()
    assert fingerprint(again) == fingerprint(identity) and explain_mismatch(identity, again) == ""

    longer = TokenSource(moved, 32).identity()
    assert fingerprint(longer) != fingerprint(identity)
    assert explain_mismatch(identity, longer) == "sequence_length: 16 -> 32"
    changed = Mixture([TokenSource(moved, 16)], [1]).identity()
    text = explain_mismatch({"source": changed, "seed": 1}, {"source": changed | {"weights": None}, "extra": 2})
    assert text.splitlines() == ["extra: absent -> 2", "seed: 1 -> absent", "source.weights: [1.0] -> None"]


def test_long_explanations_are_cut() -> None:
    text = explain_mismatch({"shards": list(range(30))}, {"shards": list(range(1, 40))})
    assert text.splitlines()[0] == "shards: 30 entries -> 39 entries"
    assert text.splitlines()[-1] == "... and 19 more differences"
