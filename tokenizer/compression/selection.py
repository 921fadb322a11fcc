"""Which pieces of a vocabulary to keep, by how often a corpus uses them.

    published  the required pieces, then the most frequent, ties by id (docs/methods/tiny_lm.md: compact tokenizer)
    closed     the same walk, but a piece comes with its missing ancestors (derivation.py); one for which there is no
               room any more is passed over for the next, so the size is still exact. Pieces that the donor never
               produces come last of those never seen. A vocabulary without byte pieces keeps all its characters.

Kept ids are ascending: the order of the donor is preserved.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.errors import InputError
from tokenizer.compression.derivation import Derivations
from tokenizer.compression.sliceable import SliceableTokenizer
from tokenizer.inspection import embedding_share

LEAST_COVERAGE = 0.9
LARGEST_EMBEDDING_SHARE = 0.2
"""The paper's rule of thumb: coverage above, share of embedding and head below."""


class SelectionError(InputError, ValueError):
    """No vocabulary of the size that was asked for, or none that the rule accepts."""


@dataclass(frozen=True)
class ModelShape:
    """The model whose embedding the vocabulary pays for."""

    width: int
    layers: int
    intermediate_size: int | None
    """None: 8/3 of the width."""
    tied: bool
    """Whether the head is the embedding."""

    def share(self, vocab_size: int) -> float:
        """Share of the embedding and the head in all parameters (the paper's PEHL)."""
        shares = embedding_share(vocab_size, self.width, self.layers, self.intermediate_size)
        return shares["share_tied" if self.tied else "share_untied"]


class Selector:
    """Selects vocabularies of any size from one tokenizer and one table of counts.

    Args:
        donor: the tokenizer.
        counts: how often the corpus uses each id, [V] int64.
        closed: keep what the kept pieces are built from.
    """

    def __init__(self, donor: SliceableTokenizer, counts: np.ndarray, closed: bool):
        self.donor = donor
        self.counts = counts
        self.closed = closed
        self.required = set(donor.required) | (set(donor.alphabet) if closed else set())
        if closed:
            for id_ in sorted(self.required):
                self.required |= set(self.derivations.missing(id_, self.required))

    @cached_property
    def derivations(self) -> Derivations:
        """Parts of every piece; none for a unigram model."""
        if not self.donor.merge_ranks:
            return Derivations([], [], [])
        return Derivations(self.donor.names, self.donor.ordinary, self.donor.merge_ranks)

    @cached_property
    def order(self) -> list[int]:
        """All ids, the first to keep first."""
        ids = np.array(self.donor.ids)
        last = np.zeros(len(self.counts), dtype=bool)
        if self.closed:
            last[list(self.derivations.underivable)] = True
        return ids[np.lexsort((ids, last[ids], -self.counts[ids]))].tolist()

    @property
    def smallest(self) -> int:
        """Size of the smallest vocabulary: the required pieces alone."""
        return len(self.required)

    def select(self, size: int) -> list[int]:
        """Exactly `size` ids, ascending.

        Raises:
            SelectionError: the required pieces alone are more, or the donor has fewer.
        """
        if size < self.smallest:
            kinds = "special and byte pieces"
            if len(self.required) > len(self.donor.required):
                kinds += " and the characters that text would be lost without"
            raise SelectionError(
                f"vocab_size: {size:,} pieces cannot hold the {self.smallest:,} {kinds}, which are always kept;"
                f" ask for {self.smallest:,} or more"
            )
        if size > len(self.donor.ids):
            raise SelectionError(
                f"vocab_size: {size:,} is more than the {len(self.donor.ids):,} pieces of {self.donor.origin};"
                " compression only removes pieces"
            )
        kept = set(self.required)
        for id_ in self.order:
            if len(kept) == size:
                break
            if id_ in kept:
                continue
            missing = self.derivations.missing(id_, kept) if self.closed else [id_]
            if len(kept) + len(missing) <= size:
                kept.update(missing)
        return sorted(kept)

    def coverage(self, kept: list[int]) -> float:
        """Share of the corpus's tokens that are kept pieces."""
        return float(self.counts[kept].sum() / self.counts.sum())

    def automatic(self, shape: ModelShape) -> tuple[int, str]:
        """The smallest size that the rule accepts, and why.

        Raises:
            SelectionError: no size has both enough coverage and a small enough embedding; says what each allows.
        """
        sizes = range(self.smallest, len(self.donor.ids))
        # Both shares grow with the size, so each bound is found by bisection.
        size = self.smallest + bisect_left(sizes, True, key=lambda v: self.coverage(self.select(v)) > LEAST_COVERAGE)
        largest = bisect_left(
            range(1, len(self.donor.ids) + 1), True, key=lambda v: shape.share(v) >= LARGEST_EMBEDDING_SHARE
        )
        coverage, share = self.coverage(self.select(size)), shape.share(size)
        why = (
            f"coverage above {LEAST_COVERAGE:.0%} needs {size:,} pieces ({coverage:.2%}); an embedding share below"
            f" {LARGEST_EMBEDDING_SHARE:.0%} at width {shape.width}, {shape.layers} layers,"
            f" {'tied' if shape.tied else 'untied'} head allows {largest:,} ({share:.2%} at {size:,})"
        )
        if share >= LARGEST_EMBEDDING_SHARE:
            raise SelectionError(
                f"vocab_size auto: both cannot hold: {why}; take a larger model (--width, --layers, --tied true), a"
                " narrower corpus, or choose --vocab_size yourself"
            )
        return size, why
