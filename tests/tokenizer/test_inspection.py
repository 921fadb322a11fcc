"""The inspection adds up, and its numbers are those of a direct count."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trained import MODEL_TYPES, SYMBOLS, write_jsonl
from tokenizer.inspection import InspectConfig, embedding_share, inspect_tokenizer
from tokenizer.load import load_tokenizer


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_report_adds_up(
    model_type: str, trained: Callable[[str], Path], corpus_texts: list[str], tmp_path: Path
) -> None:
    latin, han = corpus_texts[1:40:2], corpus_texts[0:40:2]
    paths = {"en": write_jsonl(tmp_path / "en.jsonl", latin), "zh": write_jsonl(tmp_path / "zh.jsonl", han)}
    config = InspectConfig(
        tokenizer=str(trained(model_type)),
        sample=[f"{label}={path}" for label, path in paths.items()],
        output=str(tmp_path / "out"),
        width=64,
    )
    report = inspect_tokenizer(config)
    assert report.vocab_size == sum(report.make_up.values()) == 1600
    assert report.make_up["bytes"] == 256 and report.make_up["special"] == 4
    if model_type == "bpe":
        assert report.make_up["user-defined"] == len(SYMBOLS)
    assert report.make_up["Latin"] > 100 and report.make_up["Han"] > 100
    tokenizer = load_tokenizer(trained(model_type))
    for texts, fit in ((latin, report.texts["en"]), (han, report.texts["zh"])):
        tokens = [id_ for text in texts for id_ in tokenizer.encode(text, add_special_tokens=False)]
        assert (fit.tokens, fit.distinct_tokens) == (len(tokens), len(set(tokens)))
        assert fit.bytes_per_token == sum(len(text.encode()) for text in texts) / len(tokens)
        assert fit.round_trip_failures == 0 and fit.unknown_tokens == 0
        assert len(fit.coverage) == fit.distinct_tokens and fit.coverage[-1] == 1
        assert fit.coverage == sorted(fit.coverage)
    assert report.texts["en"].tokens_per_word is not None and report.texts["zh"].tokens_per_word is None
    written = json.loads((tmp_path / "out" / "inspection.json").read_text(encoding="utf-8"))
    assert written["hash"] == report.hash and written["texts"]["en"]["tokens"] == report.texts["en"].tokens
    assert (tmp_path / "out" / "coverage.png").read_bytes().startswith(b"\x89PNG")
    screen = report.to_text().splitlines()
    assert len(screen) <= 24 and max(map(len, screen)) <= 200


def test_byte_fallback_counts_characters_without_a_piece(trained: Callable[[str], Path], tmp_path: Path) -> None:
    sample = write_jsonl(tmp_path / "greek.jsonl", ["αβγ\n\n" * 100])
    report = inspect_tokenizer(InspectConfig(tokenizer=str(trained("bpe")), sample=[f"el={sample}"]))
    assert report.texts["el"].byte_fallback_share == 6 / 8  # three letters of two bytes; a line break is one token


def test_a_tokenizer_that_loses_text_is_seen(real_data: Path, tmp_path: Path) -> None:
    sample = write_jsonl(tmp_path / "x.jsonl", ["two  spaces", "fine"])
    model = real_data / "tokenizers" / "chinese-llama" / "chinese_sp.model"
    report = inspect_tokenizer(InspectConfig(tokenizer=str(model), sample=[f"x={sample}"]))
    assert report.texts["x"].round_trip_failures == 1


def test_embedding_share_is_the_arithmetic_of_llama() -> None:
    share = embedding_share(vocab_size=1000, width=8, layers=2, intermediate_size=16)
    body = 2 * (4 * 64 + 3 * 8 * 16 + 2 * 8) + 8
    assert share["embedding"] == 8000 and share["body"] == body
    assert share["share_tied"] == 8000 / (8000 + body) and share["share_untied"] == 16000 / (16000 + body)


@pytest.mark.parametrize("entry", ["en", "=path", "en="])
def test_sample_entries_need_a_label_and_a_path(entry: str) -> None:
    with pytest.raises(ValueError, match="must be label=PATH"):
        InspectConfig(tokenizer="x", sample=[entry])
