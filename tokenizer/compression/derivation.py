"""Which pieces a BPE piece is built from, so that a smaller vocabulary keeps every piece it lists within reach.

BPE starts from characters and merges the best-ranked pair of neighbours (the leftmost of several) until none is left.
A merge inside a piece never looks beyond the piece, so the piece has one derivation, the one of its own text:

    "ing"  =  "in" + "g"        direct parts of "ing": in, g
    "in"   =  "i" + "n"         all ancestors:         in, g, i, n

If all ancestors of a kept piece are kept, every step of its derivation is still there, and still the best of what is
left: the piece stays reachable. A text that the donor spells in kept pieces only is spelt alike afterwards, for the
same reason.

Cost: 10 us a piece, quadratic in its length.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

MergeRanks = Mapping[tuple[str, str], float]
"""Neighbours -> rank of their merge; the lowest is done first, of equal ones the leftmost."""


def last_merge(piece: str, ranks: MergeRanks) -> tuple[str, str] | None:
    """The two parts whose merge completes `piece` when BPE runs on its text; None if it ends in other pieces."""
    parts = list(piece)
    pairs = [ranks.get(pair) for pair in pairwise(parts)]
    while len(parts) > 2:
        best = min(((rank, place) for place, rank in enumerate(pairs) if rank is not None), default=None)
        if best is None:
            return None
        place = best[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del pairs[place]
        if place > 0:
            pairs[place - 1] = ranks.get((parts[place - 1], parts[place]))
        if place < len(pairs):
            pairs[place] = ranks.get((parts[place], parts[place + 1]))
    return (parts[0], parts[1]) if len(parts) == 2 and pairs[0] is not None else None


class Derivations:
    """The direct parts of every ordinary piece of a BPE vocabulary.

    Args:
        names: piece of every id.
        ordinary: ids of the pieces that merging makes (not special tokens, not byte pieces).
        rank_tables: the orders of merging that must all agree that a piece is reachable; usually one. A piece that they
            derive differently depends on the parts of all.
    """

    def __init__(self, names: Sequence[str], ordinary: Iterable[int], rank_tables: Sequence[MergeRanks]):
        ordinary = list(ordinary)
        ids = {names[id_]: id_ for id_ in ordinary}
        self.parts: dict[int, tuple[int, ...]] = {}
        self.underivable: set[int] = set()
        for id_ in ordinary:
            if len(names[id_]) == 1:
                continue
            merges = [last_merge(names[id_], ranks) for ranks in rank_tables]
            parts = {ids.get(part) for merge in merges if merge is not None for part in merge}
            if None in merges or None in parts:
                self.underivable.add(id_)
            else:
                self.parts[id_] = tuple(sorted(part for part in parts if part is not None))

    def missing(self, id_: int, kept: set[int]) -> list[int]:
        """The piece and those of its ancestors that are not in `kept`, in no particular order."""
        found, waiting = {id_}, [id_]
        while waiting:
            for part in self.parts.get(waiting.pop(), ()):
                if part not in kept and part not in found:
                    found.add(part)
                    waiting.append(part)
        return list(found - kept)

    def is_closed(self, kept: set[int]) -> bool:
        """Whether every kept piece has its parts, and so all its ancestors, in `kept`."""
        return all(part in kept for id_ in kept for part in self.parts.get(id_, ()))
