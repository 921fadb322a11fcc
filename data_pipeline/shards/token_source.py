"""`TokenSource`: token shards as packed training sequences.

    stream of tokens      <s> a a a </s> <s> b b </s> <s> c c ...         all shards, one after the other
    sample i                   |---------- S + 1 tokens from i*S ------|
    input_ids   [S]            a   a   </s> <s>  b   b   </s>
    labels      [S]            a  </s> -100  b   b  </s>  -100            the next token, unless another document's
    position_ids[S]            0   1    2    0   1   2    3               restarts: attention stays inside a document

Consecutive samples share one token, so every token of the stream is an input once and a label once. The last
`(tokens - 1) % S` labels of a source do not fill a sample and are never read (`unused_tokens` counts them).

Cost: a sample is one slice of a memory map and one binary search in the document ends per shard it touches: 30 us.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import SourceError
from data_pipeline.shards.token_shards import TokenShards
from data_pipeline.source import DocumentSpan, Sample

IGNORED_LABEL = -100
"""Label that no loss counts; the value that torch and transformers ignore."""


class TokenSource:
    """The shards of one directory, memory-mapped, as samples of `sequence_length` tokens.

    Args:
        directory: output of `prepare`.
        sequence_length: S, tokens per sample.
        document_mask: restart `position_ids` at every document; False counts through the row.
        tokenizer_hash: hash of the tokenizer that the caller will use; shards of another are refused.
        vocab_size: size of the caller's embedding table; shards with a larger vocabulary are refused.
        verify: read everything once, to compare checksums and token ids. Sizes are always compared.

    Raises:
        FileNotFoundError: no such directory.
        ShardError: a shard is missing, truncated, altered, or made by another tokenizer.
        SourceError: there are no tokens, or not enough for one sample.
    """

    def __init__(
        self,
        directory: str | Path,
        sequence_length: int,
        document_mask: bool = True,
        *,
        tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
        verify: bool = False,
    ):
        if sequence_length < 1:
            raise SourceError(f"sequence_length: expected at least 1, found {sequence_length}")
        self.sequence_length = sequence_length
        self.document_mask = document_mask
        self.shards = TokenShards(directory, tokenizer_hash=tokenizer_hash, vocab_size=vocab_size, verify=verify)
        self.directory = self.shards.directory
        self.meta = self.shards.meta
        if len(self) < 1:
            raise SourceError(
                f"{self.directory}: {self.shards.tokens} tokens do not make one sample of {sequence_length} + 1;"
                " prepare more text or shorten sequence_length"
            )

    def __len__(self) -> int:
        return max(0, self.shards.tokens - 1) // self.sequence_length

    @property
    def tokens_per_sample(self) -> int:
        """Labels per sample, the ignored ones included."""
        return self.sequence_length

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token of the stream."""
        return self.meta.bytes_per_token

    @property
    def bytes_per_label(self) -> float:
        """UTF-8 bytes of text per label that is not ignored: the figure for bits per byte."""
        return self.meta.bytes_per_label

    @property
    def unused_tokens(self) -> int:
        """Tokens at the end of the stream that no sample predicts."""
        return self.shards.tokens - 1 - len(self) * self.sequence_length

    def identity(self) -> dict[str, Any]:
        """What the samples depend on: shape, tokenizer and the shards' checksums."""
        return {
            "kind": "tokens",
            "sequence_length": self.sequence_length,
            "document_mask": self.document_mask,
            "tokenizer_hash": self.meta.tokenizer_hash,
            "shards": self.shards.identity(),
        }

    def sample(self, index: int) -> Sample:
        """Sample `index`: `input_ids`, `labels` and `position_ids`, each int64 [sequence_length].

        Raises SourceError when the number is out of range, ShardError when a token id exceeds the vocabulary.
        """
        start = self._start(index)
        length = self.sequence_length
        token_T = self.shards.read(start, start + length + 1)
        boundary_D = self.shards.boundaries(start, start + length)
        label_S = token_T[1:].copy()
        label_S[boundary_D - 1] = IGNORED_LABEL
        position_T = np.arange(length + 1)
        if self.document_mask and boundary_D.size:
            first_T = np.zeros_like(position_T)
            first_T[boundary_D] = boundary_D
            position_T -= np.maximum.accumulate(first_T)
        return {"input_ids": token_T[:-1], "labels": label_S, "position_ids": position_T[:-1]}

    def documents(self, index: int) -> list[DocumentSpan]:
        """The documents whose tokens are the inputs of sample `index`, in row order."""
        start = self._start(index)
        stop = start + self.sequence_length
        cuts = [start, *(start + boundary for boundary in self.shards.boundaries(start, stop - 1).tolist()), stop]
        return [self.shards.span(first, last, first - start) for first, last in pairwise(cuts)]

    def _start(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise SourceError(f"{self.directory}: sample {index} asked for, but there are {len(self)}")
        return int(index) * self.sequence_length
