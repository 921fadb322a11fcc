"""In which order a word's characters are predicted, and who may see whom (docs/methods/ocr.md: orderings).

Positions: 0 is [B], 1 to T the characters, T + 1 is [E]. An ordering is a permutation of them that begins with 0; a
position may look at those before it in the ordering. For T = 3, rows = queries, columns = [B] c1 c2 c3, x = blocked:

    forward 0 1 2 3 4     reversed 0 4 3 2 1     0 2 1 3 4 (c2 first)    cloze (refinement)
    c1    .  x  x  x      c1    .  x  .  .       c1    .  x  .  x        c1    .  x  .  .
    c2    .  .  x  x      c2    .  x  x  .       c2    .  x  x  x        c2    .  .  x  .
    c3    .  .  .  x      c3    .  x  x  x       c3    .  .  .  x        c3    .  .  .  x
    [E]   .  .  .  .      [E]   .  x  x  x       [E]   .  .  .  .        [E]   .  .  .  .

Shapes: K orderings, P = T + 2 positions, L = T + 1 inputs ([B], characters) and as many outputs (characters, [E]).
"""

from __future__ import annotations

import math
from itertools import permutations

import torch
from torch import Tensor

# One of each {ordering, its reverse} of four characters, by lexicographic number; shorter words take the first half.
FOUR_CHARACTERS = (0, 3, 4, 6, 9, 10, 12, 16, 17, 18, 19, 21)


def sample_orderings(length: int, count: int, generator: torch.Generator, longest: int | None = None) -> Tensor:
    """Draws the orderings of one step.

    Row 0 is left to right, row 1 right to left with [E] first; every further pair is a random ordering and its reverse.
    Words of up to four characters have no duplicates among them, and fewer than `count` if there are fewer.

    Args:
        length: T, characters of the batch's longest label.
        count: K, even, or 1 for left to right alone.
        generator: source of randomness.
        longest: draw orderings of this many characters and keep those of the first `length`. They are as uniform, and
            micro-batches of different length that draw from the same seed agree on what they have in common.

    Returns:
        int64 [K, T + 2].

    Raises:
        ValueError: `count` is odd, or `length` less than 1.
    """
    if length < 1:
        raise ValueError(f"length: must be at least 1, found {length}")
    if count != 1 and (count < 2 or count % 2):
        raise ValueError(f"count: must be 1 or even, because every ordering comes with its reverse, found {count}")
    forward = torch.arange(length)
    rows = [forward]
    if count > 1 and length > 1:
        rows = []
        for row in [forward, *_others(length, count // 2 - 1, generator, longest or length)]:
            rows += [row, row.flip(0)]
    ordering_KP = torch.zeros(len(rows), length + 2, dtype=torch.int64)
    ordering_KP[:, 1:-1] = torch.stack(rows) + 1
    ordering_KP[:, -1] = length + 1
    if len(rows) > 1:
        ordering_KP[1, 1:] = torch.arange(length + 1, 0, -1)
    return ordering_KP


def _others(length: int, wanted: int, generator: torch.Generator, longest: int) -> list[Tensor]:
    """Random orderings of `length` characters besides left to right, one of each pair with its reverse."""
    if length > 4:
        drawn = (torch.randperm(max(longest, length), generator=generator) for _ in range(wanted))
        return [order[order < length] for order in drawn]
    every = torch.tensor(list(permutations(range(length))))
    numbers = FOUR_CHARACTERS if length == 4 else range(math.factorial(length) // 2)
    pool = every[list(numbers)][1:]
    return list(pool[torch.randperm(len(pool), generator=generator)[:wanted]])


def attention_masks(ordering_KP: Tensor) -> tuple[Tensor, Tensor]:
    """What each ordering hides.

    Returns:
        Content mask and query mask, bool [K, L, L], True = blocked. Content row j is input j, query row i is the output
        that predicts position i + 1; columns are inputs. They are two tensors: changing one leaves the other.
    """
    place_KP = ordering_KP.argsort(dim=1)
    inputs_KL, outputs_KL = place_KP[:, :-1], place_KP[:, 1:]
    content_KLL = inputs_KL[:, None, :] > inputs_KL[:, :, None]
    query_KLL = inputs_KL[:, None, :] >= outputs_KL[:, :, None]
    return content_KLL, query_KLL


def cloze_mask(length: int) -> Tensor:
    """The query mask of refinement: everything but the character itself. bool [1, L, L], L = `length`."""
    return torch.ones(length, length, dtype=torch.bool).triu(1).tril(1)[None]
