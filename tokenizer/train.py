"""Trains a SentencePiece tokenizer on a bounded sample of a corpus and writes it for SentencePiece and transformers.

What it decides for you, and why:

    byte fallback, identity normalisation, no dummy prefix, spaces kept    any UTF-8 text survives encode and decode
    U+2581 and U+0010 escaped (convert.ESCAPES)                            ... those two included
    printable ASCII always in the vocabulary                               code and markup never fall to bytes
    digits split                                                           numbers are read digit by digit
    unigram scores rounded to 1/64                                         sums are exact in float32, so tokenizers and
                                                                           SentencePiece break ties in the same way

Same documents and seed give the same bytes. Processor time for 8,192 pieces from 20 MB of English and Chinese, 0.5 GB:
10 s for BPE, 90 s for unigram (shared by its threads).
"""

import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import sentencepiece

from common.errors import DataError, InputError
from tokenizer.convert import ESCAPES, LOSSLESS, to_backend, write_tokenizer
from tokenizer.inputs.broken_text import BrokenText, TextCheck
from tokenizer.inputs.corpus import corpus_texts
from tokenizer.inputs.sampling import Sample, sample_texts
from tokenizer.model_proto import NORMAL, parse_model
from tokenizer.symbols import SPECIAL_TOKENS, check_symbols, check_whole

LINE_BYTES = 4096
"""Longer lines are cut: SentencePiece would skip them."""
SCORE_GRID = 64
CHECKED_TEXTS = 200


class VocabularySizeError(InputError, ValueError):
    """The data cannot support the vocabulary; the message says what it could."""


@dataclass(frozen=True)
class TrainConfig:
    """What `python -m tokenizer train` does."""

    input: list[str]
    """Files or directories: .jsonl, .json, .txt (each also .gz, .bz2, .xz, .zst), .parquet."""
    output: str
    """Directory for tokenizer.model, tokenizer.json and tokenizer_config.json."""
    vocab_size: int = 8192
    """Pieces, with the 4 special tokens, 256 bytes and all symbols."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Merge the most frequent pairs (bpe), or prune to the most likely pieces (unigram, several times slower)."""
    character_coverage: float = 0.9995
    """Share of the sample's characters that get a piece of their own; the rest is spelt in bytes."""
    user_defined_symbols: list[str] = field(default_factory=list)
    """Strings that are one token wherever they occur in text."""
    control_symbols: list[str] = field(default_factory=list)
    """Special tokens that text can never produce, in addition to <unk>, <s>, </s>, <pad>."""
    split_digits: bool = True
    """One token per digit."""
    max_piece_length: int = 16
    """Longest piece in characters."""
    sample_bytes: int = 20_000_000
    """Train on a random sample of whole documents of at most this size."""
    seed: int = 0
    """Chooses the sample."""
    num_threads: int = 2
    """Threads; part of the configuration because rounding, and so a unigram model, depends on it."""
    text_field: str = "text"
    """Field or column that holds the text, also a nested one (`meta.text`)."""
    broken_text: BrokenText = "skip"
    """Documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of all;
    replace what is broken by U+FFFD, counted; or refuse the first one."""

    def __post_init__(self) -> None:
        if not self.input:
            raise ValueError("input: name at least one file or directory")
        for name, least in (("vocab_size", 1), ("max_piece_length", 1), ("sample_bytes", 1), ("num_threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if not 0.9 <= self.character_coverage <= 1:
            raise ValueError(f"character_coverage: must be between 0.9 and 1, got {self.character_coverage}")
        check_symbols(self.user_defined_symbols, self.control_symbols)


@dataclass(frozen=True)
class TrainReport:
    """What was trained, from what."""

    output: str
    vocab_size: int
    sample_documents: int
    sample_bytes: int
    seen_documents: int
    seen_bytes: int
    empty_documents: int
    """Documents without text, which are passed over."""
    broken_documents: int
    """Documents of broken text, left out or mended as `broken_text` says."""

    def to_text(self) -> str:
        """Two lines for the terminal."""
        empty = f"; {self.empty_documents:,} empty documents" if self.empty_documents else ""
        empty += f"; {self.broken_documents:,} documents of broken text" if self.broken_documents else ""
        return (
            f"{self.output}: {self.vocab_size:,} pieces\n  trained on {self.sample_documents:,} of "
            f"{self.seen_documents:,} documents, {self.sample_bytes:,} of {self.seen_bytes:,} bytes{empty}"
        )


def train_tokenizer(config: TrainConfig) -> TrainReport:
    """Samples, trains, checks that SentencePiece and tokenizer.json agree and lose nothing, then writes.

    Raises:
        FileNotFoundError: an input does not exist.
        InvalidDocumentError: a document cannot be used (not UTF-8, not JSON, no text); names file and line.
        VocabularySizeError: the sample has too few distinct pieces, or more required characters than `vocab_size`.
        ValueError: the inputs hold no text, a file is damaged, or a symbol cannot be kept whole.
    """
    check = TextCheck(config.broken_text)
    texts = corpus_texts(config.input, config.text_field, check, progress="sample")
    sample = sample_texts(texts, config.sample_bytes, config.seed)
    if not sample.texts:
        raise DataError(f"{', '.join(config.input)}: no text to train on")
    model = train_model(sample.texts, config)
    _check_exact(model, sample)
    write_tokenizer(model, config.output)
    return TrainReport(
        output=config.output,
        vocab_size=config.vocab_size,
        sample_documents=len(sample.texts),
        sample_bytes=sample.bytes,
        seen_documents=sample.seen_documents,
        seen_bytes=sample.seen_bytes,
        empty_documents=check.empty,
        broken_documents=check.broken,
    )


def train_model(texts: Sequence[str], config: TrainConfig) -> bytes:
    """Trains on all of `texts`; returns the serialised SentencePiece model.

    Raises:
        VocabularySizeError: the texts cannot support `config.vocab_size`.
    """
    writer = io.BytesIO()
    printable = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    symbols = {*config.user_defined_symbols, *config.control_symbols}
    with tempfile.TemporaryDirectory() as folder:
        rules, inverse_rules = _write_escape_rules(Path(folder))
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=training_lines(texts),
                model_writer=writer,
                model_type=config.model_type,
                vocab_size=config.vocab_size,
                character_coverage=config.character_coverage,
                required_chars="".join(character for character in printable if character not in symbols),
                user_defined_symbols=config.user_defined_symbols,
                control_symbols=config.control_symbols,
                byte_fallback=True,
                split_digits=config.split_digits,
                max_sentencepiece_length=config.max_piece_length,
                allow_whitespace_only_pieces=True,
                normalization_rule_name="identity",
                normalization_rule_tsv=str(rules),
                denormalization_rule_tsv=str(inverse_rules),
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                seed_sentencepiece_size=max(100_000, 10 * config.vocab_size),
                max_sentence_length=4 * LINE_BYTES,
                num_threads=config.num_threads,
                minloglevel=2,
                unk_id=SPECIAL_TOKENS.index("<unk>"),
                bos_id=SPECIAL_TOKENS.index("<s>"),
                eos_id=SPECIAL_TOKENS.index("</s>"),
                pad_id=SPECIAL_TOKENS.index("<pad>"),
            )
        except RuntimeError as error:
            raise _explained(str(error), config) from error
    return _finished(writer.getvalue(), config)


def training_lines(texts: Sequence[str]) -> Iterator[str]:
    """Cuts where no piece can reach across: at line ends, and at characters that SentencePiece's trainer reserves.

    Those (NUL, tab, U+2585 and the two escaped ones) are always spelt in bytes; the trainer would skip their lines.
    """
    separators = re.compile(f"[\\r\\n\\0\\t\u2585{''.join(map(re.escape, ESCAPES))}]+")
    for text in texts:
        for line in separators.split(text):
            for start in range(0, len(line), LINE_BYTES // 4):  # a character has at most 4 bytes
                yield line[start : start + LINE_BYTES // 4]


def _write_escape_rules(folder: Path) -> tuple[Path, Path]:
    """ESCAPES and its inverse as SentencePiece reads them: hexadecimal code points, a tab between both sides."""

    def codes(text: str) -> str:
        return " ".join(f"{ord(character):X}" for character in text)

    forward, inverse = folder / "escape.tsv", folder / "unescape.tsv"
    forward.write_text("".join(f"{codes(plain)}\t{codes(escaped)}\n" for plain, escaped in ESCAPES.items()))
    inverse.write_text("".join(f"{codes(escaped)}\t{codes(plain)}\n" for plain, escaped in ESCAPES.items()))
    return forward, inverse


def _finished(model: bytes, config: TrainConfig) -> bytes:
    """Names the normaliser, removes temporary paths, rounds unigram scores; the same input gives the same bytes."""
    proto = parse_model(model, "the trained model")
    proto.normalizer_spec.name = LOSSLESS
    for spec in (proto.normalizer_spec, proto.denormalizer_spec):
        spec.ClearField("normalization_rule_tsv")
    if config.model_type == "unigram":
        for piece in proto.pieces:
            piece.score = round(piece.score * SCORE_GRID) / SCORE_GRID
        scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
        check_whole(config.user_defined_symbols, scores)
    return proto.SerializeToString(deterministic=True)


def _explained(message: str, config: TrainConfig) -> Exception:
    """Turns SentencePiece's refusal into what the data could support."""
    if found := re.search(r"Vocabulary size too high \(\d+\).*<= (\d+)", message):
        return VocabularySizeError(
            f"vocab_size: this text supports at most {int(found[1]):,} pieces, not {config.vocab_size:,}; "
            "ask for fewer, or give more text (--input, --sample_bytes)"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return VocabularySizeError(
            f"vocab_size: this text needs at least {int(found[1]):,} pieces (its characters at character_coverage "
            f"{config.character_coverage}, 256 bytes and the special tokens), not {config.vocab_size:,}; "
            "ask for more, or lower --character_coverage"
        )
    return RuntimeError(f"SentencePiece could not train: {message}")


def _check_exact(model: bytes, sample: Sample) -> None:
    """The promise, tried on the text at hand before anything is written."""
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    backend = to_backend(parse_model(model, "the trained model"), "the trained model")
    for text in sample.texts[:CHECKED_TEXTS]:
        ids = reference.encode(text)
        if backend.encode(text, add_special_tokens=False).ids != ids:
            raise RuntimeError(f"tokenizer.json and SentencePiece disagree on the text that begins {text[:60]!r}")
        if backend.decode(ids, skip_special_tokens=False) != text or reference.decode(ids) != text:
            raise RuntimeError(f"decoding changes the text that begins {text[:60]!r}")
