"""`SentenceSource`: token shards of images as visual sentences (docs/methods/delvm.md: visual sentences).

    record       ids of 1 image, of a pair (input, target), or of the frames of a sequence           n ids an image
    sentence s   [record | record | record | record]         e.g. 4 pairs = 8 images of ONE task, drawn anew each pass
    input_ids    s[:-1]      labels  s[1:]                   int64 [T], T = images_per_sentence * n - 1

Nothing is ignored: inputs and targets of the pairs are both predicted, and code 0 counts. Which records meet in a
sentence is arithmetic: sentence i is the k-th of pass p (p = i // per_pass, k = i % per_pass) and holds the images of
k*r ... k*r + r - 1 under a permutation keyed by (seed, p), so the r records are distinct and a pass visits no record
twice; records % r of them are left out of a pass, others in every pass. A set of fewer than r records makes one
sentence a pass, in which every record stands as often as any other, within one.

Cost: a sentence is r slices of a memory map and one permutation: 0.1 ms.
"""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import SourceError
from data_pipeline.permutation import derive_key, permute
from data_pipeline.shards.token_shards import TokenShards
from data_pipeline.source import DocumentSpan, Sample


class SentenceSource:
    """The records of one shard directory, so of one task, as sentences.

    Args:
        directory: output of `prepare` with a visual tokenizer.
        images_per_sentence: a multiple of the images in a record.
        passes: times that the records are dealt into sentences; the source holds `passes` times as many.
        seed: names the deals.
        tokenizer_hash: hash of the visual tokenizer that the caller will use; shards of another are refused.
        vocab_size: size of the caller's embedding table; shards with a larger vocabulary are refused.
        verify: read everything once, to compare checksums and token ids.

    Raises:
        FileNotFoundError: no such directory.
        ShardError: a shard is missing, truncated, altered, or made by another tokenizer.
        SourceError: the shards hold text or no record, records differ in length, or do not fill a sentence.
    """

    def __init__(
        self,
        directory: str | Path,
        images_per_sentence: int = 8,
        passes: int = 1,
        seed: int = 0,
        *,
        tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
        verify: bool = False,
    ):
        for name, value in (("images_per_sentence", images_per_sentence), ("passes", passes)):
            if value < 1:
                raise SourceError(f"{name}: expected at least 1, found {value}")
        self.images_per_sentence, self.passes, self.seed = images_per_sentence, passes, seed
        self.shards = TokenShards(directory, tokenizer_hash=tokenizer_hash, vocab_size=vocab_size, verify=verify)
        self.directory = self.shards.directory
        self.meta = self.shards.meta
        self.tokens_per_image = self._image_length()
        self.record_length = self._record_length()
        self.records_per_sentence, rest = divmod(images_per_sentence, self.images_per_record)
        if rest:
            raise SourceError(
                f"{self.directory}: its records hold {self.images_per_record} images each, which do not fill a sentence"
                f" of {images_per_sentence}; set images_per_sentence to a multiple of {self.images_per_record}"
            )

    def __len__(self) -> int:
        return self.sentences_per_pass * self.passes

    @property
    def records(self) -> int:
        """Records in the shards."""
        return self.meta.documents

    @property
    def images_per_record(self) -> int:
        """1: single images, 2: pairs, more: sequences."""
        return self.record_length // self.tokens_per_image

    @property
    def sentences_per_pass(self) -> int:
        """Sentences that one deal of the records makes."""
        return max(1, self.records // self.records_per_sentence)

    @property
    def tokens_per_sample(self) -> int:
        """Labels per sentence; none is ignored."""
        return self.images_per_sentence * self.tokens_per_image - 1

    @property
    def bytes_per_label(self) -> float:
        """Bytes of RGB pixels per label."""
        return self.meta.bytes_per_token * (self.tokens_per_sample + 1) / self.tokens_per_sample

    def identity(self) -> dict[str, Any]:
        """What the sentences depend on."""
        return {
            "kind": "sentences",
            "sequence_length": self.tokens_per_sample,
            "images_per_sentence": self.images_per_sentence,
            "passes": self.passes,
            "seed": self.seed,
            "tokenizer_hash": self.meta.tokenizer_hash,
            "shards": self.shards.identity(),
        }

    def sample(self, index: int) -> Sample:
        """Sentence `index`: `input_ids`, `labels` and `position_ids`, each int64 [tokens_per_sample].

        Raises SourceError when the number is out of range, ShardError when a token id exceeds the vocabulary.
        """
        length = self.record_length
        pieces = [self.shards.read(record * length, (record + 1) * length) for record in self.records_of(index)]
        token_T = np.concatenate(pieces)
        return {"input_ids": token_T[:-1], "labels": token_T[1:], "position_ids": np.arange(len(token_T) - 1)}

    def documents(self, index: int) -> list[DocumentSpan]:
        """The records of sentence `index`, in row order; the last id of the last one is a label only."""
        length = self.record_length
        return [
            self.shards.span(record * length, (record + 1) * length, row * length)
            for row, record in enumerate(self.records_of(index))
        ]

    def records_of(self, index: int) -> list[int]:
        """Numbers of the records in sentence `index`, in row order, counted through all shards."""
        if not 0 <= index < len(self):
            raise SourceError(f"{self.directory}: sentence {index} asked for, but there are {len(self)}")
        deal, place = divmod(int(index), self.sentences_per_pass)
        slot_R = place * self.records_per_sentence + np.arange(self.records_per_sentence)
        round_R, slot_R = np.divmod(slot_R, self.records)  # a second round begins only where records are too few
        record_R = np.empty_like(slot_R)
        for again in range(round_R[-1] + 1):
            chosen = round_R == again
            record_R[chosen] = permute(slot_R[chosen], self.records, derive_key(self.seed, deal, again))
        return record_R.tolist()

    def _image_length(self) -> int:
        length = self.meta.tokens_per_image
        if length is None:
            raise SourceError(
                f"{self.directory}: these shards hold text, not images; sentences need the output of"
                " `python -m data_pipeline prepare` with a visual tokenizer and --pairs"
            )
        return length

    def _record_length(self) -> int:
        """Ids of every record; refuses records that differ, and lengths that are no whole number of images."""
        if not self.records:
            raise SourceError(f"{self.directory}: holds no record; prepare again")
        expected = int(self.shards.document_ends(0)[0])
        for number, shard in enumerate(self.meta.shards):
            length_D = np.diff(self.shards.document_ends(number).astype(np.int64), prepend=0)
            different = np.flatnonzero(length_D != expected)
            if different.size:
                raise SourceError(
                    f"{self.directory / shard.file}: record {different[0]} has {length_D[different[0]]} ids, but the"
                    f" first of the directory has {expected}; records of one task must be of one length, prepare again"
                )
        if expected % self.tokens_per_image:
            raise SourceError(
                f"{self.directory}: records of {expected} ids are no whole number of images of {self.tokens_per_image};"
                " prepare again"
            )
        return expected
