"""`compress`: the size that was asked for, nothing lost, every kept piece reachable, in each format."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from common.errors import ShardError
from common.vocabulary_map import VocabularyMap, VocabularyMapError
from data_pipeline.shards.prepare import prepare
from data_pipeline.shards.prepare_config import PrepareConfig
from tests.trained import SYMBOLS, write_jsonl
from tokenizer.__main__ import main
from tokenizer.compression import counting
from tokenizer.compression.compress import CompressError, compress
from tokenizer.compression.compress_config import CompressConfig
from tokenizer.compression.compress_report import CompressReport
from tokenizer.compression.counting import CountingError
from tokenizer.compression.derivation import Derivations
from tokenizer.compression.selection import SelectionError, Selector
from tokenizer.compression.sliceable import open_sliceable
from tokenizer.fingerprint import tokenizer_hash
from tokenizer.load import load_tokenizer

KINDS = ("bpe", "unigram", "byte_level")
SIZE = 1100


def run(donor: Path, corpus: Path, output: Path, **changes: Any) -> CompressReport:
    fields = {"vocab_size": SIZE, "workers": 1, "sample_bytes": 50_000, **changes}
    return compress(CompressConfig(tokenizer=str(donor), corpus=[str(corpus)], output=str(output), **fields))


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def compressed(trained, corpus_file, tmp_path_factory):
    """A function: kind -> (donor's directory, compressed directory, report), made on first use."""
    made: dict[str, tuple[Path, Path, CompressReport]] = {}

    def get(kind: str) -> tuple[Path, Path, CompressReport]:
        if kind not in made:
            output = tmp_path_factory.mktemp("compressed") / kind
            made[kind] = (trained(kind), output, run(trained(kind), corpus_file, output))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_exact_and_kept_pieces_keep_their_order(compressed, kind):
    donor_directory, output, report = compressed(kind)
    donor, small = load_tokenizer(donor_directory), load_tokenizer(output)
    mapping = VocabularyMap.load(output)
    assert len(small) == len(mapping.kept) == report.vocab_size == SIZE
    assert mapping.kept == sorted(set(mapping.kept))
    assert small.convert_ids_to_tokens(range(SIZE)) == donor.convert_ids_to_tokens(mapping.kept)
    assert (mapping.donor_hash, mapping.hash) == (tokenizer_hash(donor), tokenizer_hash(small))
    assert (report.donor_hash, report.hash) == (mapping.donor_hash, mapping.hash)
    assert {new: old for old, new in enumerate(mapping.new_ids) if new >= 0} == dict(enumerate(mapping.kept))


@pytest.mark.parametrize("kind", KINDS)
def test_specials_and_bytes_are_kept(compressed, kind):
    donor_directory, output, report = compressed(kind)
    donor, small = load_tokenizer(donor_directory), load_tokenizer(output)
    assert set(donor.all_special_tokens) | set(SYMBOLS) <= set(small.get_vocab())
    assert (small.bos_token, small.eos_token) == (donor.bos_token, donor.eos_token)
    every_byte = set(ByteLevel.alphabet()) if kind == "byte_level" else {f"<0x{byte:02X}>" for byte in range(256)}
    assert every_byte <= set(small.get_vocab())
    assert report.required >= 256 + len(SYMBOLS)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_merge_priorities_are_the_donors(compressed, kind):
    donor_directory, output, _ = compressed(kind)
    before, after = (json.loads((path / "tokenizer.json").read_text())["model"] for path in (donor_directory, output))
    if kind == "unigram":
        kept = VocabularyMap.load(output).kept
        assert after["vocab"] == [before["vocab"][old] for old in kept]
    else:
        names = set(after["vocab"])
        parts = [tuple(merge) for merge in before["merges"]]
        possible = [(a, b) for a, b in parts if {a, b, a + b} <= names]
        assert [tuple(merge) for merge in after["merges"]] == possible


@pytest.mark.parametrize("kind", KINDS)
def test_every_kept_piece_is_still_produced(compressed, corpus_texts, kind):
    """The proof, made anew: encode every piece's own text and the corpus, and see which ids come out.

    Byte-level pieces may be parts of characters, which are no text; the model is given their bytes.
    """
    donor_directory, output, report = compressed(kind)
    assert report.lost == []
    donor, small = load_tokenizer(donor_directory), load_tokenizer(output)
    texts = [small.decode([id_]) for id_ in range(SIZE)]
    produced = {id_ for text in (*texts, *(f" {text}" for text in texts), *corpus_texts) for id_ in ids(small, text)}
    ordinary = set(open_sliceable(donor_directory, donor).ordinary)
    long = {
        new: donor.convert_ids_to_tokens(old)
        for new, old in enumerate(VocabularyMap.load(output).kept)
        if old in ordinary and len(donor.convert_ids_to_tokens(old)) > 1
    }
    assert len(long) > 200
    if kind == "byte_level":
        model = small.backend_tokenizer.model
        produced |= {token.id for new, name in long.items() if "�" in texts[new] for token in model.tokenize(name)}
    unexplained = {name for new, name in long.items() if new not in produced} - set(report.unreachable_in_donor)
    assert not unexplained


@pytest.mark.parametrize("kind", KINDS)
def test_fuzzed_unicode_survives_as_it_did(compressed, kind):
    donor_directory, output, report = compressed(kind)
    donor, small = load_tokenizer(donor_directory), load_tokenizer(output)
    assert {label: fit.round_trip_failures for label, fit in report.after.items()} == {
        label: fit.round_trip_failures for label, fit in report.before.items()
    }

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.text(max_size=60))
    def survives(text: str) -> None:
        assert small.decode(ids(small, text)) == donor.decode(ids(donor, text))
        assert max(ids(small, text), default=0) < SIZE

    survives()


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_kept_pieces_is_cut_alike(compressed, corpus_texts, kind):
    """With closure, dropping pieces changes nothing where no dropped piece was used; unigram always agreed there."""
    donor_directory, output, _ = compressed(kind)
    donor, small, table = load_tokenizer(donor_directory), load_tokenizer(output), VocabularyMap.load(output).new_ids
    same = 0
    for text in corpus_texts:
        for line in text.splitlines():
            mapped = table[ids(donor, line)]
            if (mapped >= 0).all():
                assert ids(small, line) == mapped.tolist()
                same += 1
    assert same > 100


@pytest.mark.parametrize("kind", ("bpe", "unigram"))
def test_the_input_format_and_tokenizer_json_agree(compressed, corpus_texts, kind):
    _, output, report = compressed(kind)
    spm = sentencepiece.SentencePieceProcessor(model_file=str(output / "tokenizer.model"))
    auto = AutoTokenizer.from_pretrained(output)
    assert spm.get_piece_size() == len(auto) == SIZE
    assert report.disagreements == 0
    assert all(spm.encode(text) == ids(auto, text) for text in corpus_texts)


def test_without_closure_pieces_get_lost_and_are_named(trained, corpus_file, compressed, tmp_path):
    _, _, closed = compressed("bpe")
    report = run(trained("bpe"), corpus_file, tmp_path / "open", closure=False)
    assert report.lost and closed.lost == []
    assert [entry.count for entry in report.lost] == sorted((entry.count for entry in report.lost), reverse=True)
    small = load_tokenizer(tmp_path / "open")
    for entry in report.lost:
        new = small.convert_tokens_to_ids(entry.piece)
        assert new not in ids(small, entry.piece.replace("▁", " "))
    assert report.coverage == closed.published_coverage >= closed.coverage
    assert closed.ancestors > 0 == report.ancestors
    assert f"kept but unreachable: {len(report.lost):,} (" in report.to_text()


def test_the_same_input_gives_the_same_bytes_with_any_number_of_workers(trained, compressed, corpus_file, tmp_path):
    _, first, _ = compressed("bpe")
    run(trained("bpe"), corpus_file, tmp_path / "again", workers=2)
    for name in ("tokenizer.json", "tokenizer.model", "vocabulary_map.json"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize("kind", ("bpe", "byte_level"))
def test_shards_count_as_their_text_does(trained, compressed, corpus_file, tmp_path, kind):
    prepare(PrepareConfig([str(corpus_file)], str(tmp_path / "shards"), str(trained(kind)), workers=1))
    _, output, from_text = compressed(kind)
    report = run(trained(kind), tmp_path / "shards", tmp_path / "out")
    assert VocabularyMap.load(tmp_path / "out") == VocabularyMap.load(output)
    assert (report.tokens, report.documents, report.bytes) == (from_text.tokens, from_text.documents, from_text.bytes)
    with pytest.raises(CountingError, match="made by tokenizer"):
        run(trained("unigram"), tmp_path / "shards", tmp_path / "other")
    shard = next((tmp_path / "shards").glob("*.ds"))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ShardError, match=r"truncated: expected \d+ bytes, found \d+; copy it again"):
        run(trained(kind), tmp_path / "shards", tmp_path / "cut")


def test_counts_are_kept_and_not_made_twice(trained, corpus_file, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "PART_BYTES", 100_000)
    counts = tmp_path / "counts"
    first = run(trained("bpe"), corpus_file, tmp_path / "a", counts=str(counts))
    parts = sorted(counts.glob("*/*.npz"))
    assert len(parts) > 2
    parts[0].unlink()  # as if the call had been interrupted before this part
    stamps = {part: part.stat().st_mtime_ns for part in parts[1:]}
    second = run(trained("bpe"), corpus_file, tmp_path / "b", counts=str(counts))
    assert parts[0].is_file() and stamps == {part: part.stat().st_mtime_ns for part in parts[1:]}
    assert (second.hash, second.tokens) == (first.hash, first.tokens)


def test_auto_obeys_the_rule_or_says_why_it_cannot(trained, corpus_file, tmp_path):
    wide = {"width": 1024, "layers": 24, "tied": True}
    report = run(trained("bpe"), corpus_file, tmp_path / "auto", vocab_size="auto", **wide)
    assert report.coverage > 0.9 and report.shares["1024"]["after"] < 0.2
    assert report.why is not None and f"needs {report.vocab_size:,} pieces" in report.why
    smaller = run(trained("bpe"), corpus_file, tmp_path / "less", vocab_size=report.vocab_size - 1, **wide)
    assert smaller.coverage <= 0.9
    with pytest.raises(SelectionError, match="both cannot hold: coverage above 90% needs"):
        run(trained("bpe"), corpus_file, tmp_path / "no", vocab_size="auto", width=8, layers=1)
    assert not (tmp_path / "no").exists()


def test_impossible_sizes_and_foreign_outputs_are_refused(trained, corpus_file, compressed, tmp_path):
    with pytest.raises(SelectionError, match=r"cannot hold the [\d,]+ special and byte pieces"):
        run(trained("bpe"), corpus_file, tmp_path / "out", vocab_size=50)
    with pytest.raises(SelectionError, match=r"1,601 is more than the 1,600 pieces"):
        run(trained("bpe"), corpus_file, tmp_path / "out", vocab_size=1601)
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(CompressError, match="mine: holds something else"):
        run(trained("bpe"), corpus_file, foreign)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert not list(tmp_path.glob("*.partial"))


def test_the_report_explains_the_choice(compressed):
    _, output, report = compressed("bpe")
    saved = json.loads((output / "report.json").read_text())
    assert saved["vocab_size"] == SIZE and saved["hash"] == report.hash
    assert all((output / plot).stat().st_size > 5_000 for plot in ("coverage.png", "fit.png"))
    assert report.curve[-1] == (1600, 1.0)
    assert [share for _, share in report.curve] == sorted(share for _, share in report.curve)
    assert set(report.before) == set(report.after) == {"Han", "Latin"}
    for label, old in report.before.items():
        assert report.after[label].bytes_per_token <= old.bytes_per_token
    assert report.dropped_seen > 0 and report.dropped[0].count >= report.dropped[-1].count > 0
    assert len(report.to_text().splitlines()) <= 24


def test_a_map_that_was_tampered_with_is_refused(compressed, tmp_path):
    _, output, _ = compressed("bpe")
    with pytest.raises(VocabularyMapError, match=r"not found; give the --output"):
        VocabularyMap.load(tmp_path)
    content = json.loads((output / "vocabulary_map.json").read_text())
    for change in ({"kept": [3, 2]}, {"kept": [0, 1600]}, {"kept": []}, {"format": 9}, {"kept": "abc"}, {"extra": 1}):
        (tmp_path / "vocabulary_map.json").write_text(json.dumps(content | change))
        with pytest.raises(VocabularyMapError, match="compress again"):
            VocabularyMap.load(tmp_path)


def test_the_command_takes_the_published_spelling(trained, corpus_file, tmp_path, capsys):
    words = ["compress", "--tokenizer", str(trained("bpe")), "--corpus", str(corpus_file), "--out", str(tmp_path / "o")]
    assert main([*words, "--vocab-size", str(SIZE), "--no-closure", "--workers", "1"]) == 0
    assert "1,600 -> 1,100 pieces" in capsys.readouterr().out
    assert len(load_tokenizer(tmp_path / "o")) == SIZE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--corpus": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"--tokenizer": "nowhere"}, "nowhere"),
        ({"--vocab-size": "10"}, "cannot hold the"),
        ({"--corpus": "empty.jsonl"}, "no text"),
        ({"--corpus": "broken.jsonl"}, "broken.jsonl"),
    ],
)
def test_errors_of_the_command_are_one_line(trained, corpus_file, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "empty.jsonl", [])
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    options = {"--tokenizer": str(trained("bpe")), "--corpus": str(corpus_file), "--vocab-size": "900", "--out": "out"}
    assert main(["compress", *(word for option in (options | change).items() for word in option)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tokenizer compress:")]
    assert len(said) == 1 and message in said[0]
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_the_command_and_its_workers_with_one_line(trained, corpus_file, tmp_path):
    words = ["--tokenizer", str(trained("bpe")), "--corpus", str(corpus_file), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tokenizer", "compress", *words, "--vocab-size", "1100"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "out.counts").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and not (tmp_path / "out").exists()
    assert "tokenizer compress: interrupted" in errors and "Traceback" not in errors


def test_random_selections_stay_closed(trained):
    """Any counts, any size: the parts of every kept piece are kept as well."""
    donor = open_sliceable(trained("bpe"), load_tokenizer(trained("bpe")))
    derivations = Derivations(donor.names, donor.ordinary, donor.merge_ranks)
    rng = random.Random(1)
    for _ in range(20):
        counts = np.array([rng.randint(0, 1000) for _ in donor.names])
        selector = Selector(donor, counts, closed=True)
        size = rng.randint(selector.smallest, len(donor.ids))
        kept = selector.select(size)
        assert len(kept) == size and set(donor.required) <= set(kept)
        assert derivations.is_closed(set(kept) - derivations.underivable)
