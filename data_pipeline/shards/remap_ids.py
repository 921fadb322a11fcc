"""Ids of a tokenizer -> ids of a smaller one that was cut out of it, equal to encoding the text again.

Where a table suffices, and why. BPE merges the best pair of neighbours until none is left, so

  * a document that the donor spells in kept pieces only is spelt alike by the smaller one, if every kept piece has its
    merge ancestors (tokenizer/compression/derivation.py): every merge of the donor's run is still there and still the
    best;
  * a sequence of pieces is what BPE makes of its text if and only if every two neighbours are what it makes of theirs:
    the first merge across a border would happen between the two neighbours alone as well.

    stretches   closed BPE, no pre-tokeniser,    the table; each dropped piece is encoded again with its neighbours,
                bytes for the unknown            with more of them until the outermost two stay as they were
    documents   closed BPE otherwise             the table; documents with a dropped piece are decoded and encoded
    text        unigram, or not closed           every document is decoded and encoded

Decoding is exact if the donor gives the same ids for the decoded text, and none of them is the unknown token: the ids
spell the normalised text, and that is all either tokenizer sees.

Cost on one core: stretches 20 to 100 MB of text a second, text the speed of `prepare`.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from common.vocabulary_map import VocabularyMap
from tokenizer.compression.derivation import Derivations
from tokenizer.compression.sliceable import SliceableTokenizer
from tokenizer.encoder import open_encoder

Mode = Literal["stretches", "documents", "text"]
CACHED_STRETCHES = 2**18


def choose_mode(donor: SliceableTokenizer, mapping: VocabularyMap) -> Mode:
    """The fastest mode that is exact for this donor and this choice of pieces."""
    if not donor.merge_ranks:
        return "text"
    derivations = Derivations(donor.names, donor.ordinary, donor.merge_ranks)
    kept = set(mapping.kept)
    if kept & derivations.underivable or not derivations.is_closed(kept):
        return "text"
    ordinary = {donor.names[id_] for id_ in donor.ordinary}
    model = donor.backend.model
    plain = (
        donor.backend.pre_tokenizer is None
        and model.byte_fallback
        and not model.ignore_merges
        and all(left in ordinary and right in ordinary for ranks in donor.merge_ranks for left, right in ranks)
    )
    return "stretches" if plain else "documents"


class Remapper:
    """Translates documents, without bos and eos.

    Args:
        donor: directory of the larger tokenizer.
        smaller: directory of the one that was cut out of it.
        mapping: what was cut.
        mode: of `choose_mode`.
        ordinary: ids of the donor's pieces that take part in merging.
    """

    def __init__(self, donor: Path, smaller: Path, mapping: VocabularyMap, mode: Mode, ordinary: Sequence[int]):
        self.mode = mode
        self.table = mapping.new_ids
        self.old = Tokenizer.from_file(str(donor / "tokenizer.json"))
        self.old.encode_special_tokens = True
        self._encode_new = open_encoder(smaller)
        new = Tokenizer.from_file(str(smaller / "tokenizer.json"))
        bare = Tokenizer(tokenizer_models.BPE())
        bare.model = new.model
        self._segment = lru_cache(CACHED_STRETCHES)(lambda text: bare.encode(text, add_special_tokens=False).ids)
        self._old_names = [self.old.id_to_token(id_) or "" for id_ in range(mapping.donor_vocab_size)]
        self._new_names = [self._old_names[id_] for id_ in mapping.kept]
        self._merging_old = np.zeros(mapping.donor_vocab_size, dtype=bool)
        self._merging_old[list(ordinary)] = True
        self._merging_new = self._merging_old[mapping.kept]

    @property
    def unknown_id(self) -> int | None:
        """The donor's id for what it cannot spell; None if it can spell everything."""
        name = getattr(self.old.model, "unk_token", None)
        if isinstance(self.old.model, tokenizer_models.Unigram):
            unknown = json.loads(self.old.to_str())["model"]["unk_id"]
            return None if unknown is None else int(unknown)
        return None if name is None else self.old.token_to_id(name)

    def translate(self, documents: Sequence[np.ndarray]) -> list[list[int]]:
        """New ids of each document of old ids."""
        mapped = [self.table[document] for document in documents]
        found: list[list[int] | None] = [None] * len(documents)
        if self.mode != "text":
            for place, (document, new) in enumerate(zip(documents, mapped, strict=True)):
                holes = np.flatnonzero(new < 0)
                if not len(holes):
                    found[place] = new.tolist()
                elif self.mode == "stretches":
                    found[place] = self._fill(document.tolist(), new.tolist(), holes.tolist())
        rest = [place for place, ids in enumerate(found) if ids is None]
        for place, ids in zip(rest, self.by_text([documents[place] for place in rest]), strict=True):
            found[place] = ids
        return [ids for ids in found if ids is not None]

    def by_text(self, documents: Sequence[np.ndarray]) -> list[list[int]]:
        """New ids by way of the decoded texts."""
        return self._encode_new(self.texts(documents)) if documents else []

    def texts(self, documents: Sequence[np.ndarray]) -> list[str]:
        """The decoded texts."""
        return self.old.decode_batch([document.tolist() for document in documents], skip_special_tokens=False)

    def encode_old(self, texts: Sequence[str]) -> list[list[int]]:
        """What the donor makes of texts."""
        return [encoding.ids for encoding in self.old.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _fill(self, old: list[int], mapped: list[int], holes: list[int]) -> list[int]:
        """Encodes the dropped pieces of one document again, each stretch with as many neighbours as it takes.

        Args:
            old: ids of the donor.
            mapped: new ids, -1 in the holes.
            holes: places of the dropped pieces, ascending.
        """
        made: list[int] = []  # new ids of old[:done]; every two neighbours in it are valid
        done = 0
        for hole in holes:
            if hole < done:
                continue
            made += mapped[done:hole]
            left, left_ends = self._one_more(made, 0)
            done, right_ends = self._behind(old, mapped, hole)
            while True:
                before = made[len(made) - left :]
                text = "".join(self._new_names[id_] for id_ in before)
                text += "".join(self._old_names[id_] for id_ in old[hole:done])
                ids = self._segment(text)
                if not left_ends and ids[0] != before[0]:
                    left, left_ends = self._one_more(made, left)
                elif not right_ends and ids[-1] != mapped[done - 1]:
                    done, right_ends = self._behind(old, mapped, done)
                else:
                    break
            made[len(made) - left :] = ids
        return made + mapped[done:]

    def _one_more(self, made: list[int], left: int) -> tuple[int, bool]:
        """How many ids before a stretch to encode with it: one more, unless nothing can merge with the next."""
        at_border = left == len(made) or not self._merging_new[made[len(made) - left - 1]]
        return (left, True) if at_border else (left + 1, False)

    def _behind(self, old: list[int], mapped: list[int], start: int) -> tuple[int, bool]:
        """Where a stretch ends that goes on at `start`: behind the next kept piece, or where nothing can merge."""
        stop = start
        while stop < len(old) and self._merging_old[old[stop]]:
            stop += 1
            if mapped[stop - 1] >= 0:
                return stop, False
        return stop, True
