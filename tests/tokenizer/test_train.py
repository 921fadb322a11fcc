"""Training: the same bytes again, refusals that say what would work, nothing skipped in silence."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from tests.trained import MODEL_TYPES, train_config, write_jsonl
from tokenizer.inputs.documents import InvalidDocumentError
from tokenizer.symbols import check_whole
from tokenizer.train import LINE_BYTES, TrainConfig, VocabularySizeError, train_model, train_tokenizer, training_lines

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_same_corpus_and_seed_give_the_same_bytes(
    model_type: str, trained: Callable[[str], Path], corpus_texts: list[str], tmp_path: Path
) -> None:
    """Also when the documents come in another order and from several files."""
    backwards = corpus_texts[::-1]
    folder = tmp_path / "texts"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", backwards[:150])
    write_jsonl(folder / "b.jsonl", backwards[150:])
    train_tokenizer(train_config(folder, tmp_path / "again", model_type=model_type))
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (trained(model_type) / name).read_bytes(), name


def test_no_path_of_this_machine_is_in_the_model(trained: Callable[[str], Path], tmp_path: Path) -> None:
    for name in FILES:
        content = (trained("bpe") / name).read_bytes()
        assert b".tsv" not in content and b"/tmp" not in content and str(tmp_path.parent).encode() not in content


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_too_large_vocabulary_is_refused_with_the_size_that_works(model_type: str, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "small.jsonl", ["to be or not to be", "that is the question"])
    config = train_config(corpus, tmp_path / "out", vocab_size=5000, model_type=model_type)
    with pytest.raises(VocabularySizeError, match="supports at most") as refused:
        train_tokenizer(config)
    assert not (tmp_path / "out").exists()
    feasible = int(re.search(r"at most ([\d,]+) pieces", str(refused.value))[1].replace(",", ""))  # type: ignore[index]
    report = train_tokenizer(train_config(corpus, tmp_path / "out", vocab_size=feasible, model_type=model_type))
    assert report.vocab_size == feasible


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_too_small_vocabulary_is_refused_with_the_size_that_works(
    model_type: str, corpus_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(VocabularySizeError, match="needs at least") as refused:
        train_tokenizer(train_config(corpus_file, tmp_path / "out", vocab_size=300, model_type=model_type))
    least = int(re.search(r"at least ([\d,]+) pieces", str(refused.value))[1].replace(",", ""))  # type: ignore[index]
    assert train_tokenizer(train_config(corpus_file, tmp_path / "out", vocab_size=least)).vocab_size == least


def testtraining_lines_skip_no_character() -> None:
    """Everything that a piece could contain reaches the trainer, in lines it does not reject for their length."""
    text = "start" + "长" * 5000 + "\u2581mid\0dle\x10 \u2585\n\r\n end\t" + "x" * 10_000
    lines = list(training_lines([text]))
    assert "".join(lines) == re.sub("[\u2581\0\x10\u2585\r\n\t]", "", text)
    assert max(len(line.encode()) for line in lines) <= LINE_BYTES


def test_control_symbols_cannot_be_written_in_text(corpus_file: Path, tmp_path: Path) -> None:
    train_tokenizer(train_config(corpus_file, tmp_path, control_symbols=["<image>"]))
    model = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert model.piece_to_id("<image>") == 4
    assert 4 not in model.encode("an <image> here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: must be at least 1"),
        ({"character_coverage": 0.5}, "character_coverage: must be between"),
        ({"user_defined_symbols": ["a b"]}, "'a b' is empty or holds a space"),
        ({"user_defined_symbols": ["\u2581x"]}, "holds a space"),
        ({"user_defined_symbols": ["<s>"]}, "'<s>' is there twice"),
        ({"user_defined_symbols": ["<x>"], "control_symbols": ["<x>"]}, "'<x>' is there twice"),
        ({"control_symbols": ["<0x41>"]}, "byte pieces"),
    ],
)
def test_bad_configurations_are_refused_before_reading(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train_config(Path("never read"), Path("never written"), **changes)


def test_a_single_character_can_be_a_symbol(corpus_file: Path, tmp_path: Path) -> None:
    train_tokenizer(train_config(corpus_file, tmp_path, user_defined_symbols=["~", "一"]))
    model = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert model.encode("~~一", out_type=str) == ["~", "~", "一"]


def test_unigram_refuses_symbols_that_pieces_would_break(corpus_file: Path, tmp_path: Path) -> None:
    config = train_config(corpus_file, tmp_path / "out", user_defined_symbols=["ka"], model_type="unigram")
    with pytest.raises(ValueError, match="would break 'ka'"):
        train_tokenizer(config)
    train_tokenizer(train_config(corpus_file, tmp_path / "out", user_defined_symbols=["ka"], model_type="bpe"))


def test_the_proof_of_wholeness_sees_every_kind_of_overlap() -> None:
    pieces = {"<": -9.0, "x": -4.0, ">": -9.0, "a": -5.0, "b": -5.0}
    check_whole(["<x>"], pieces)
    check_whole(["<x>"], {**pieces, "a<": -20.0})  # a piece that never pays
    for piece, score in (("a<", -3.0), (">b", -3.0), ("a<x>b", -3.0)):
        with pytest.raises(ValueError, match="would break '<x>'"):
            # one overlap must make up for what the rest of the symbol costs
            check_whole(["<x>"], {**pieces, "x>": -0.5, "<x": -0.5, piece: score})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"text": "fine"}\n{"text": "caf\xe9"}\n', "bad.jsonl:2: not UTF-8"),
        ("bad.txt", b"fine\ncaf\xe9\n", "bad.txt:2: not UTF-8"),
        ("cut.jsonl", b'{"text": "fine"}\n{"text": "br', "cut.jsonl:2: not a JSON object"),
        ("field.jsonl", b'{"body": "fine"}\n', "field.jsonl:1: no field 'text'; there are body"),
        ("number.jsonl", b'{"text": 5}\n', "number.jsonl:1: field 'text' must be a string, but is int"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "half.jsonl:1: "),
    ],
)
def test_bad_input_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidDocumentError, match=re.escape(message)):
        train_tokenizer(train_config(tmp_path / name, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl: no such file"):
        train_tokenizer(train_config(tmp_path / "missing.jsonl", tmp_path / "out"))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b'{"text": " "}\n')
    (tmp_path / "empty.txt").write_bytes(b"")
    for name in ("empty.jsonl", "blank.jsonl", "empty.txt"):
        with pytest.raises(ValueError, match=f"{re.escape(name)}: no text to train on"):
            train_tokenizer(train_config(tmp_path / name, tmp_path / "out"))


def test_empty_documents_are_passed_over_and_counted(corpus_texts: list[str], tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "texts.jsonl", ["", *corpus_texts, "  \n"])
    report = train_tokenizer(train_config(corpus, tmp_path / "out"))
    assert report.empty_documents == 2 and report.seen_documents == len(corpus_texts)
    assert report.to_text().endswith("; 2 empty documents")


def test_max_piece_length_and_coverage_are_used(corpus_texts: list[str]) -> None:
    config = TrainConfig(input=["-"], output="-", vocab_size=900, max_piece_length=3, character_coverage=0.98)
    model = SentencePieceProcessor(model_proto=train_model(corpus_texts, config))
    lengths = [len(model.id_to_piece(id_)) for id_ in range(4 + 256, model.get_piece_size())]
    assert max(lengths) == 3
