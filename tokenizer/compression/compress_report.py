"""What `python -m tokenizer compress` found, as JSON and as one screen of text."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizer.inspection import TextFit

DROPPED_ON_SCREEN = 8
LOST_ON_SCREEN = 6


@dataclass(frozen=True)
class PieceCount:
    """A piece and how often the corpus used it."""

    piece: str
    count: int


@dataclass(frozen=True)
class LostPiece:
    """A kept piece that the donor produces and the compressed tokenizer cannot."""

    piece: str
    donor_id: int
    count: int
    """Occurrences in the corpus."""


@dataclass(frozen=True)
class CompressReport:
    """Everything about one compression; `report.json` holds the same."""

    tokenizer: str
    format: str
    output: str
    donor_hash: str
    hash: str
    donor_vocab_size: int
    vocab_size: int
    why: str | None
    """With vocab_size auto: why this size."""
    closure: bool
    required: int
    """Pieces that are always kept: special tokens, symbols, bytes (and what closure adds to them)."""
    ancestors: int
    """Pieces that closure keeps and the published procedure would not."""
    documents: int
    bytes: int
    tokens: int
    coverage: float
    """Share of the corpus's tokens (as the donor cuts it) that are kept pieces."""
    published_coverage: float
    """The same for the published procedure at this size."""
    top_coverage: float
    """The same for the most frequent pieces alone, without the pieces that are always kept."""
    curve: list[tuple[int, float]]
    """Points (k, share of the tokens that the k most frequent pieces make up)."""
    unreachable_in_donor: list[str]
    """Kept pieces that the donor itself never produces."""
    lost: list[LostPiece]
    """Kept pieces that have become unreachable, the most frequent first."""
    dropped: list[PieceCount]
    """The most frequent pieces that were removed."""
    dropped_seen: int
    """Removed pieces that the corpus used at all."""
    before: dict[str, TextFit]
    """How the donor fits each sample."""
    after: dict[str, TextFit]
    """How the compressed tokenizer does."""
    disagreements: int
    """Sampled texts for which SentencePiece and tokenizer.json give different ids (pieces of equal score)."""
    shape: dict[str, Any]
    """The model whose embedding share is reported."""
    shares: dict[str, dict[str, float]]
    """Width -> share of embedding and head in the model's parameters, before and after."""

    def save(self, path: Path) -> None:
        """Write as JSON; the coverage curves of the samples are left out (`inspect` has them)."""
        content = asdict(self)
        for fit in (*content["before"].values(), *content["after"].values()):
            del fit["coverage"]
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def to_text(self) -> str:
        """One screen."""
        lines = [
            f"{self.output}: {self.donor_vocab_size:,} -> {self.vocab_size:,} pieces ({self.format}),"
            f" hash {self.hash[:12]}",
            f"  counted {self.tokens:,} tokens in {self.documents:,} documents, {self.bytes:,} bytes",
            f"  coverage {self.coverage:.2%} of the tokens (published procedure {self.published_coverage:.2%});"
            f" {self.required:,} pieces always kept, {self.ancestors:,} for closure",
        ]
        if self.why is not None:
            lines.append(f"  auto: {self.why}")
        lines += [
            f"  kept but unreachable: {len(self.lost):,}{_examples(self.lost)};"
            f" never produced by the donor either: {len(self.unreachable_in_donor):,}",
            f"  dropped although used: {self.dropped_seen:,}, most often "
            + (" ".join(f"{entry.piece!r} {entry.count:,}" for entry in self.dropped[:DROPPED_ON_SCREEN]) or "none"),
            f"  {'':<12}{'bytes/token':>18}{'tokens/char':>20}{'tokens/word':>20}{'bytes used':>20}{'lost texts':>12}",
        ]
        for label, old in self.before.items():
            new = self.after[label]
            words = "-" if old.tokens_per_word is None else _change(old.tokens_per_word, new.tokens_per_word or 0)
            lines.append(
                f"  {label:<12}{_change(old.bytes_per_token, new.bytes_per_token):>18}"
                f"{_change(old.tokens_per_character, new.tokens_per_character):>20}{words:>20}"
                f"{f'{old.byte_fallback_share:.2%} -> {new.byte_fallback_share:.2%}':>20}"
                f"{f'{old.round_trip_failures} -> {new.round_trip_failures}':>12}"
            )
        if self.disagreements:
            lines.append(
                f"  SentencePiece and tokenizer.json differ on {self.disagreements:,} sampled texts"
                " (pieces of equal score)"
            )
        head = "tied" if self.shape["tied"] else "untied"
        shares = (
            f"width {width} {share['before']:.1%} -> {share['after']:.1%}" for width, share in self.shares.items()
        )
        lines.append(f"  embedding share, {self.shape['layers']} layers, {head} head: {', '.join(shares)}")
        return "\n".join(lines)


def _change(old: float, new: float) -> str:
    return f"{old:.3f} -> {new:.3f}"


def _examples(lost: list[LostPiece]) -> str:
    if not lost:
        return ""
    shown = " ".join(f"{entry.piece!r} {entry.count:,}" for entry in lost[:LOST_ON_SCREEN])
    return f" ({shown}{' ...' if len(lost) > LOST_ON_SCREEN else ''})"
