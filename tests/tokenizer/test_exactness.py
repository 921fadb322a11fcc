"""Promise 4: any UTF-8 text survives, and tokenizer.json gives SentencePiece's ids for it."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.trained import MODEL_TYPES, SYMBOLS
from tokenizer.convert import to_backend
from tokenizer.model_proto import parse_model
from tokenizer.train import TrainConfig, train_model

# Fragments on which tokenizers of this kind usually differ or lose something.
FRAGMENTS = [
    " ", "  ", "\n", "\r\n", "\t", "\0", "\u2581", "\u2585", "\x10", "\x100", "\x101", "<s>", "</s>", "<unk>", "<pad>",
    "<0x41>", "<0xE4>", "...", "!!!!!", "    x", "12", "３", "é", "e\u0301", "ﬁ", "\ufeff", "\ufffd", "🙂",
    "\U0010ffff", "一", "丁七", "ban", " ka", *SYMBOLS, SYMBOLS[0][:5],
]  # fmt: skip
any_text = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))


@pytest.fixture(scope="session", params=MODEL_TYPES)
def directory(request: pytest.FixtureRequest, trained: Callable[[str], Path]) -> Path:
    return trained(request.param)


@cache
def _opened(directory: Path) -> tuple[SentencePieceProcessor, AutoTokenizer, Tokenizer]:
    model = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return model, AutoTokenizer.from_pretrained(directory), Tokenizer.from_file(str(directory / "tokenizer.json"))


@settings(deadline=None, max_examples=400)
@given(text=any_text)
@example(text="")
@example(text=" ")
@example(text="\u2581\u2581 a \x10\u2581\x101")
def test_any_text_survives_with_the_same_ids_everywhere(directory: Path, text: str) -> None:
    model, auto, plain = _opened(directory)
    ids = model.encode(text)
    assert auto.encode(text, add_special_tokens=False) == ids
    assert model.decode(ids) == text
    assert auto.decode(ids) == text
    assert auto.decode(auto.encode(text), skip_special_tokens=True) == text
    plain.encode_special_tokens = True
    assert plain.encode(text, add_special_tokens=False).ids == ids


def test_special_tokens_come_only_from_the_post_processor(directory: Path) -> None:
    _, auto, _ = _opened(directory)
    assert [auto.unk_token_id, auto.bos_token_id, auto.eos_token_id, auto.pad_token_id] == [0, 1, 2, 3]
    text = "ban <s> </s> <pad> <unk>"
    without = auto.encode(text, add_special_tokens=False)
    assert not set(without) & {0, 1, 2, 3}
    assert auto.encode(text) == [1, *without]
    assert auto(text).keys() == {"input_ids", "attention_mask"}


def test_user_symbols_stay_whole(directory: Path) -> None:
    model, auto, _ = _opened(directory)
    for symbol in SYMBOLS:
        id_ = auto.convert_tokens_to_ids(symbol)
        for text in (symbol, f"ban{symbol}ban", symbol * 3, f"一{symbol}。", f" {symbol}\n"):
            assert model.encode(text).count(id_) == text.count(symbol)
            assert auto.encode(text).count(id_) == text.count(symbol)


def test_digits_are_split(directory: Path) -> None:
    _, auto, _ = _opened(directory)
    assert len(auto.encode("2024", add_special_tokens=False)) == 4
    pieces = auto.get_vocab()
    assert not [piece for piece in pieces if sum(map(str.isdecimal, piece)) and len(piece) > 1 and piece[0] != "<"]


def test_printable_ascii_never_needs_bytes(directory: Path) -> None:
    _, auto, _ = _opened(directory)
    names = auto.convert_ids_to_tokens(auto.encode("".join(map(chr, range(32, 127))), add_special_tokens=False))
    assert not [name for name in names if name.startswith("<0x")]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("alphabet", ["ab", "ab.", "哈呵", "ab "])
def test_repetitive_text_breaks_ties_alike(model_type: str, alphabet: str) -> None:
    """Runs of one character can be cut in many equally good ways; both implementations must choose the same."""
    rng = random.Random(alphabet)

    def runs(count: int, mean: float) -> str:
        return "".join(rng.choice(alphabet) * (1 + int(rng.expovariate(1 / mean))) for _ in range(count))

    config = TrainConfig(input=["-"], output="-", vocab_size=400, model_type=model_type, num_threads=1)  # type: ignore[arg-type]
    model = train_model([runs(12, 2.0) for _ in range(300)], config)
    reference = SentencePieceProcessor(model_proto=model)
    backend = to_backend(parse_model(model, "test"), "test")
    for text in (runs(rng.randint(1, 20), 3.0) for _ in range(2000)):
        assert backend.encode(text, add_special_tokens=False).ids == reference.encode(text), text


@pytest.mark.parametrize("name", ["internlm/tokenizer.model", "internlm2/tokenizer.model"])
def test_foreign_models_give_sentencepiece_ids(name: str, real_data: Path) -> None:
    file = real_data / "tokenizers" / name
    reference = SentencePieceProcessor(model_file=str(file))
    backend = to_backend(parse_model(file.read_bytes(), name), name)
    for text in [
        " The  quick\tbrown fox's  1998 jump.\n",
        "中文，“标点”。\n\n　全角１２３",
        "a\0b",
        "<s></s>",
        *FRAGMENTS,
    ]:
        assert backend.encode(text, add_special_tokens=False).ids == reference.encode(text), text


@pytest.mark.parametrize("name", ["chinese-llama/chinese_sp.model", "xlnet-zh/spiece.model"])
def test_foreign_normalisation_is_kept(name: str, real_data: Path) -> None:
    """NFKC, dummy prefix, removal of extra spaces, user symbols inside a unigram lattice."""
    file = real_data / "tokenizers" / name
    reference = SentencePieceProcessor(model_file=str(file))
    backend = to_backend(parse_model(file.read_bytes(), name), name)
    for text in ["  中文，“标点”。 全角１２３ ﬁ  end ", '他说:"好(的)."', "a  b", "", " ", "①② 　x\u2581 y"]:
        assert backend.encode(text, add_special_tokens=False).ids == reference.encode(text), text
