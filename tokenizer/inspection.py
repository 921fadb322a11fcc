"""What a tokenizer's vocabulary is made of, how well it fits each language, and what it costs in a model.

Fertility is tokens per word (between spaces) and per character; bytes per token is the compression. Text without spaces
has no meaningful tokens per word, so mostly Han text shows none. Coverage says which share of a text's tokens the k
most frequent tokens make up: where the curve is flat, the vocabulary is paying for embeddings it hardly uses.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import DataError
from tokenizer.convert import SPACE
from tokenizer.fingerprint import tokenizer_hash
from tokenizer.inputs.broken_text import BrokenText, TextCheck
from tokenizer.inputs.corpus import corpus_texts
from tokenizer.inputs.sampling import sample_texts
from tokenizer.inspection_plot import plot_coverage
from tokenizer.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS_SHOWN = 10


def check_labels(sample: Sequence[str]) -> None:
    """Raises ValueError unless every entry is `label=PATH` with a label of its own."""
    labels = [entry.partition("=")[0] for entry in sample]
    for entry, label in zip(sample, labels, strict=True):
        if not label or not entry.partition("=")[2]:
            raise ValueError(f"sample: {entry!r} must be label=PATH, for example en=valid.en.jsonl")
        if labels.count(label) > 1:
            raise ValueError(f"sample: the label {label!r} is there twice")


@dataclass(frozen=True)
class InspectConfig:
    """What `python -m tokenizer inspect` looks at."""

    tokenizer: str
    """Directory, SentencePiece .model, tokenizer.json or hub id."""
    sample: list[str] = field(default_factory=list)
    """Texts by language, `label=PATH`: for example en=valid.en.jsonl zh=valid.zh.jsonl."""
    output: str | None = None
    """Directory for inspection.json and coverage.png. None: print only."""
    width: int = 256
    """Hidden size of the model whose embedding share is reported."""
    layers: int = 8
    """Number of layers of that model."""
    intermediate_size: int | None = None
    """Its feed-forward size. None: 8/3 of the width."""
    sample_bytes: int = 2_000_000
    """Read at most this much of each language, a random sample of whole documents."""
    seed: int = 0
    """Chooses the sample."""
    text_field: str = "text"
    """Field or column that holds the text."""
    broken_text: BrokenText = "skip"
    """Documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of all;
    replace what is broken by U+FFFD, counted; or refuse the first one."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "sample_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        check_labels(self.sample)


@dataclass(frozen=True)
class TextFit:
    """How a tokenizer fits one language's sample."""

    documents: int
    bytes: int
    characters: int
    tokens: int
    distinct_tokens: int
    bytes_per_token: float
    tokens_per_character: float
    tokens_per_word: float | None
    """None where the text is mostly Han: there are no spaces to count words by."""
    byte_fallback_share: float
    """Share of the tokens that spell non-ASCII characters without a piece byte by byte."""
    unknown_tokens: int
    round_trip_failures: int
    """Documents that decode to another text than was encoded."""
    coverage: list[float]
    """Element k: share of the tokens that are among the k+1 most frequent."""


@dataclass(frozen=True)
class InspectReport:
    """Everything `inspect` found; `inspection.json` holds the same."""

    tokenizer: str
    hash: str
    vocab_size: int
    make_up: dict[str, int]
    """Kind of token -> count; the kinds partition the vocabulary."""
    unreachable: list[str]
    """Pieces that no text is ever encoded to by itself: their own text becomes other tokens."""
    texts: dict[str, TextFit]
    embedding: dict[str, Any]
    """Parameters of the embedding (and an untied head), and their share of the whole model of the given shape."""

    def to_text(self) -> str:
        """One screen."""
        kinds = [f"{kind} {count:,}" for kind, count in self.make_up.items()]
        rest = sum(list(self.make_up.values())[KINDS_SHOWN:])
        kinds[KINDS_SHOWN:] = [f"{len(kinds) - KINDS_SHOWN} other kinds {rest:,}"] if rest else []
        lines = [
            f"{self.tokenizer}: {self.vocab_size:,} tokens, hash {self.hash[:12]}",
            f"  {'  '.join(kinds)}",
            f"  unreachable pieces {len(self.unreachable):,}" + _examples(self.unreachable),
        ]
        if self.texts:
            lines.append(f"  {'':<10}{'bytes':>12}{'bytes/token':>13}{'tokens/char':>13}{'tokens/word':>13}"
                         f"{'bytes used':>12}{'distinct':>10}{'lost texts':>12}")  # fmt: skip
        for label, fit in self.texts.items():
            words = "-" if fit.tokens_per_word is None else f"{fit.tokens_per_word:.3f}"
            lines.append(
                f"  {label:<10}{fit.bytes:>12,}{fit.bytes_per_token:>13.3f}{fit.tokens_per_character:>13.3f}{words:>13}"
                f"{fit.byte_fallback_share:>12.2%}{fit.distinct_tokens:>10,}{fit.round_trip_failures:>12,}"
            )
            parts = [f"{share:.0%} by {rank:,}" for share, rank in _ranks_reaching(fit.coverage)]
            lines.append(f"  {'':<10}coverage: {', '.join(parts)} tokens")
        shape = self.embedding
        lines.append(
            f"  width {shape['width']}, {shape['layers']} layers: embedding {shape['embedding']:,} parameters, "
            f"{shape['share_tied']:.1%} of the model (untied head: {shape['share_untied']:.1%})"
        )
        return "\n".join(lines)


def inspect_tokenizer(config: InspectConfig) -> InspectReport:
    """Measures a tokenizer; writes `inspection.json` and `coverage.png` if the config names an output.

    Raises:
        FileNotFoundError, TokenizerLoadError: as `load_tokenizer`.
        InvalidDocumentError, ValueError: a sample cannot be read; names file and line.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    kinds = kinds_of_tokens(tokenizer)
    samples = labelled_samples(config.sample, config.text_field, config.sample_bytes, config.seed, config.broken_text)
    texts = {label: measure_fit(tokenizer, sampled, kinds) for label, sampled in samples.items()}
    report = InspectReport(
        tokenizer=config.tokenizer,
        hash=tokenizer_hash(tokenizer),
        vocab_size=len(tokenizer),
        make_up=dict(Counter(kinds).most_common()),
        unreachable=find_unreachable(tokenizer, kinds),
        texts=texts,
        embedding=embedding_share(len(tokenizer), config.width, config.layers, config.intermediate_size),
    )
    if config.output is not None:
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(report), indent=1, ensure_ascii=False)
        (output / "inspection.json").write_text(content + "\n", encoding="utf-8")
        if texts:
            plot_coverage({label: fit.coverage for label, fit in texts.items()}, output / "coverage.png")
    return report


def labelled_samples(
    entries: Sequence[str], text_field: str, sample_bytes: int, seed: int, broken_text: BrokenText
) -> dict[str, list[str]]:
    """A random sample of whole documents of each `label=PATH`, at most `sample_bytes` each.

    Raises:
        InvalidDocumentError, ValueError: a file cannot be read; names file and line.
    """
    samples = {}
    for entry in entries:
        label, _, path = entry.partition("=")
        texts = corpus_texts([path], text_field, TextCheck(broken_text))
        samples[label] = sample_texts(texts, sample_bytes, seed).texts
    return samples


def measure_fit(tokenizer: "PreTrainedTokenizerBase", texts: list[str], kinds: list[str]) -> TextFit:
    """Encodes and decodes the texts of one language.

    Args:
        texts: documents, at least one.
        kinds: kind of every token id, as `make_up` counts them.

    Raises:
        ValueError: there is no text.
    """
    if not texts:
        raise DataError("sample: a language has no document with text")
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    counts = np.bincount(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded]), minlength=len(kinds))
    tokens = int(counts.sum())
    characters = sum(map(len, texts))
    size = sum(len(text.encode("utf-8")) for text in texts)
    han = sum(script_of(character) == "Han" for text in texts for character in text)
    words = sum(len(text.split()) for text in texts)
    frequent = np.sort(counts[counts > 0])[::-1]
    fallback = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(0x80, 0x100)]
    fallback = [id_ for id_ in fallback if id_ is not None and kinds[id_] == "bytes"]
    return TextFit(
        documents=len(texts),
        bytes=size,
        characters=characters,
        tokens=tokens,
        distinct_tokens=int((counts > 0).sum()),
        bytes_per_token=size / tokens,
        tokens_per_character=tokens / characters,
        tokens_per_word=tokens / words if 2 * han < characters else None,
        byte_fallback_share=float(counts[fallback].sum() / tokens),
        unknown_tokens=0 if tokenizer.unk_token_id is None else int(counts[tokenizer.unk_token_id]),
        round_trip_failures=sum(tokenizer.decode(ids) != text for ids, text in zip(encoded, texts, strict=True)),
        coverage=[round(share, 6) for share in (np.cumsum(frequent) / tokens).tolist()],
    )


def find_unreachable(tokenizer: "PreTrainedTokenizerBase", kinds: list[str]) -> list[str]:
    """Pieces whose own text is encoded to other tokens; special and byte tokens are not meant to be reached by name."""
    ids = [id_ for id_, kind in enumerate(kinds) if kind not in ("special", "bytes", "unused")]
    surfaces = [tokenizer.decode([id_]) for id_ in ids]
    encoded = tokenizer(surfaces, add_special_tokens=False)["input_ids"] if surfaces else []
    return [surface for id_, surface, got in zip(ids, surfaces, encoded, strict=True) if got != [id_]]


def embedding_share(vocab_size: int, width: int, layers: int, intermediate_size: int | None) -> dict[str, Any]:
    """Embedding parameters V*W against a LLaMA-shaped body: per layer 4 W^2 + 3 W F + 2 W, and a final norm of W."""
    feed_forward = intermediate_size or round(8 * width / 3)
    body = layers * (4 * width * width + 3 * width * feed_forward + 2 * width) + width
    embedding = vocab_size * width
    return {
        "width": width,
        "layers": layers,
        "intermediate_size": feed_forward,
        "embedding": embedding,
        "body": body,
        "share_tied": embedding / (embedding + body),
        "share_untied": 2 * embedding / (2 * embedding + body),
    }


def kinds_of_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """For each id: `special`, `user-defined`, `bytes`, `unused`, or the script of the piece's letters."""
    added = tokenizer.added_tokens_decoder
    kinds = []
    for id_, name in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if id_ in added:
            kinds.append("special" if added[id_].special else "user-defined")
        elif name is None or name.startswith("<unused_"):
            kinds.append("unused")
        elif re.fullmatch("<0x[0-9A-F]{2}>", name):
            kinds.append("bytes")
        else:
            scripts = {script_of(character) for character in tokenizer.decode([id_])} - {"space"} or {"space"}
            letters = scripts - {"digits", "punctuation"}
            kinds.append(min(letters or scripts) if len(letters) < 2 else "mixed")
    return kinds


def script_of(character: str) -> str:
    """Coarse script of one character, from its Unicode name: Latin, Han, ..., or digits, punctuation, space, other."""
    if character.isspace() or character == SPACE:
        return "space"
    category = unicodedata.category(character)
    if category[0] == "N":
        return "digits"
    if category[0] in "PSZC":
        return "punctuation"
    first_word = unicodedata.name(character, "other").split()[0].split("-")[0]
    return {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "FULLWIDTH": "Latin"}.get(
        first_word, first_word.title()
    )


def _ranks_reaching(coverage: list[float]) -> list[tuple[float, int]]:
    curve = np.asarray(coverage)
    return [(share, int(np.searchsorted(curve, share)) + 1) for share in (0.5, 0.8, 0.9, 0.99)]


def _examples(pieces: list[str]) -> str:
    return ": " + " ".join(map(repr, pieces[:6])) + (" ..." if len(pieces) > 6 else "") if pieces else ""
