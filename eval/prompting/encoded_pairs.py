"""A visual language model with its tokenizer, and image pairs as the codes of that tokenizer.

Shapes: P held-out pairs (the queries), E pairs to take examples from, n codes of an image, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arch.device import choose_device
from data_pipeline.permutation import derive_key, permute
from eval.models import resolve_model
from eval.prompting.sets import Pairs, VisionError, VisionSet
from tokenizer.visual.base import VISUAL_FILE, VisualTokenizer
from tokenizer.visual.load import load_visual_tokenizer


@dataclass(frozen=True)
class VisualModel:
    """A language model over visual codes, in evaluation mode, and the tokenizer it was trained with."""

    lm: Any
    tokenizer: VisualTokenizer
    source: str

    @classmethod
    def open(cls, path: str, device: str | None) -> VisualModel:
        """A run, checkpoint or export.

        Raises:
            VisionError: it has no visual tokenizer, or one of another vocabulary.
        """
        from arch.pangu_pi.load_weights import load_causal_lm

        source = Path(resolve_model(path))
        folder = next((f for f in (source / "tokenizer", source) if (f / VISUAL_FILE).is_file()), None)
        if folder is None:
            raise VisionError(f"model {path!r}: {source} has no visual tokenizer ({VISUAL_FILE}); is it a text model?")
        lm, tokenizer = load_causal_lm(source), load_visual_tokenizer(folder)
        if lm.config.vocab_size != tokenizer.vocab_size:
            raise VisionError(
                f"model {path!r}: {lm.config.vocab_size} embeddings, but its tokenizer has {tokenizer.vocab_size} codes"
            )
        return cls(lm.to(choose_device(device)).eval(), tokenizer, str(source))


@dataclass(frozen=True)
class EncodedSet:
    """A set in one tokenizer's codes."""

    definition: VisionSet
    number: int
    """Its place among the sets: seeds what is drawn for it."""
    held_out: Pairs
    examples: Pairs
    held_out_P2n: np.ndarray
    examples_E2n: np.ndarray

    @property
    def name(self) -> str:
        """The set's name."""
        return self.definition.name

    @property
    def task(self) -> str:
        """The task's name, as in PairsConfig."""
        return self.definition.task

    @property
    def among_queries(self) -> bool:
        """Whether example i is query i."""
        return self.examples is self.held_out


def encode_set(
    definition: VisionSet,
    number: int,
    tokenizer: VisualTokenizer,
    queries: int | None,
    examples: int | None,
    batch: int,
) -> EncodedSet:
    """Loads a set's pairs, at most so many queries and examples, and encodes them `batch` images at a time."""
    held_out = definition.held_out.load(tokenizer.image_size, queries, definition.name)
    codes_P2n = encode_pairs(held_out, tokenizer, batch)
    if definition.examples is None:
        return EncodedSet(definition, number, held_out, held_out, codes_P2n, codes_P2n)
    shown = definition.examples.load(tokenizer.image_size, examples, f"{definition.name} examples")
    return EncodedSet(definition, number, held_out, shown, codes_P2n, encode_pairs(shown, tokenizer, batch))


def encode_pairs(pairs: Pairs, tokenizer: VisualTokenizer, batch: int) -> np.ndarray:
    """Codes of input and target: int64 [P, 2, n]."""
    sides = (pairs.inputs_PSS3, pairs.targets_PSS3)
    return np.stack([_in_batches(tokenizer.encode, images_PSS3, batch) for images_PSS3 in sides], axis=1)


def decode(tokenizer: VisualTokenizer, codes_Pn: np.ndarray, batch: int) -> np.ndarray:
    """Images of codes: uint8 [P, S, S, 3]."""
    return _in_batches(tokenizer.decode, codes_Pn, batch)


def _in_batches(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch: int) -> np.ndarray:
    return np.concatenate([function(rows[first : first + batch]) for first in range(0, len(rows), batch)])


def draw_sentences(codes_P2n: np.ndarray, pairs: int, passes: int, seed: int) -> np.ndarray:
    """Sentences of distinct pairs, every pass in an order of its own: int64 [passes * (P // pairs), pairs * 2n].

    Raises:
        VisionError: fewer pairs than one sentence has.
    """
    count = len(codes_P2n)
    if count < pairs:
        raise VisionError(f"{count} pairs do not make one sentence of {pairs}; add images or lower --sentence_pairs")
    places = np.arange(count // pairs * pairs)
    chosen = np.concatenate([permute(places, count, derive_key(seed, number)) for number in range(passes)])
    return codes_P2n[chosen].reshape(-1, pairs * codes_P2n[0].size)
