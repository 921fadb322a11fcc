"""`TokenShards`: the shards of one directory as one memory-mapped stream of tokens, with its documents.

    stream       | shard 0: document 0, 1, 2 | shard 1: document 0, 1 | ...      token positions run through the shards

Sources cut this stream into samples: `TokenSource` at fixed lengths, `SentenceSource` at records of images.

Cost: a stretch is one slice of a memory map, and one binary search in the document ends, per shard it touches.
"""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ShardError
from common.token_shards import INDEX_DTYPE, Meta, sha256_of
from data_pipeline.source import DocumentSpan


class TokenShards:
    """The shards of one directory, memory-mapped.

    Args:
        directory: output of `prepare`.
        tokenizer_hash: hash of the tokenizer that the caller will use; shards of another are refused.
        vocab_size: size of the caller's embedding table; shards with a larger vocabulary are refused.
        verify: read everything once, to compare checksums and token ids. Sizes are always compared.

    Raises:
        FileNotFoundError: no such directory.
        ShardError: a shard is missing, truncated, altered, or made by another tokenizer.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
        verify: bool = False,
    ):
        self.directory = Path(directory)
        self.meta = Meta.load(self.directory)
        self._check_tokenizer(tokenizer_hash, vocab_size)
        self.meta.check_files(self.directory)
        self._first_token = list(accumulate((shard.tokens for shard in self.meta.shards), initial=0))
        self._map()
        if verify:
            self._verify()

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled as the whole corpus; a worker process maps the files itself.
        return {name: value for name, value in self.__dict__.items() if name not in ("_tokens", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    @property
    def tokens(self) -> int:
        """Length of the stream."""
        return self._first_token[-1]

    def identity(self) -> list[dict[str, Any]]:
        """What each shard holds, by checksum."""
        return [
            {"tokens": shard.tokens, "sha256": shard.sha256, "index_sha256": shard.index_sha256}
            for shard in self.meta.shards
        ]

    def document_ends(self, shard: int) -> np.ndarray:
        """Where each document of a shard ends, from the shard's beginning: uint64 [documents], mapped."""
        return self._ends[shard]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream, int64; the slice of every shard that they touch, joined.

        Raises ShardError when a token id exceeds the vocabulary.
        """
        pieces = []
        for shard in range(bisect_right(self._first_token, start) - 1, len(self._tokens)):
            offset = self._first_token[shard]
            if offset >= stop:
                break
            pieces.append(self._tokens[shard][max(0, start - offset) : stop - offset])
        token_T = (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).astype(np.int64)
        if token_T.max() >= self.meta.vocab_size:
            self._refuse_token(start + int(token_T.argmax()), int(token_T.max()))
        return token_T

    def boundaries(self, start: int, last: int) -> np.ndarray:
        """Where documents begin at stream positions (start, last], as int64 offsets from `start`, ascending."""
        pieces = []
        for shard in range(bisect_right(self._first_token, start) - 1, len(self._ends)):
            offset = self._first_token[shard]
            if offset > last:
                break
            ends = self._ends[shard]
            # Query in the index's own type: any other makes NumPy convert, and so read, the whole index.
            query = np.array([max(0, start - offset), last - offset], INDEX_DTYPE)
            low, high = ends.searchsorted(query, side="right")
            found_D = ends[low:high].astype(np.int64) + (offset - start)
            # The search is right only where the ends rise; `verify` reads them all, and this what is used.
            rising = np.all(found_D[1:] > found_D[:-1])  # a difference could overflow
            if found_D.size and not (found_D[0] > 0 and found_D[-1] <= last - start and rising):
                self._refuse_ends(shard)
            pieces.append(found_D)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def span(self, first: int, last: int, row_start: int) -> DocumentSpan:
        """Stream positions [first, last), which lie in one document, as that document's part of a sample's row."""
        shard = bisect_right(self._first_token, first) - 1
        offset = self._first_token[shard]
        return DocumentSpan(
            shard=self.meta.shards[shard].file,
            document=int(self._ends[shard].searchsorted(INDEX_DTYPE.type(first - offset), side="right")),
            start=first - offset,
            stop=last - offset,
            row_start=row_start,
        )

    def _map(self) -> None:
        # Plain ndarray views: slicing them is several times cheaper than slicing np.memmap's subclass.
        meta, directory = self.meta, self.directory
        self._tokens = [np.asarray(meta.map_tokens(directory, shard)) for shard in meta.shards]
        self._ends = [np.asarray(meta.map_ends(directory, shard)) for shard in meta.shards]

    def _check_tokenizer(self, tokenizer_hash: str | None, vocab_size: int | None) -> None:
        if tokenizer_hash is not None and tokenizer_hash != self.meta.tokenizer_hash:
            raise ShardError(
                f"{self.directory}: these shards were made by tokenizer {self.meta.tokenizer_hash}, but this run uses"
                f" {tokenizer_hash}; prepare the text again with the run's tokenizer, or use the shards' own,"
                f" {self.directory / 'tokenizer'}"
            )
        if vocab_size is not None and vocab_size < self.meta.vocab_size:
            raise ShardError(
                f"{self.directory}: token ids reach up to {self.meta.vocab_size - 1}, but the model's vocab_size is"
                f" {vocab_size}; set it to {self.meta.vocab_size} or more"
            )

    def _verify(self) -> None:
        for number, shard in enumerate(self.meta.shards):
            path = self.directory / shard.file
            for file, expected in ((path, shard.sha256), (Path(f"{path}.index"), shard.index_sha256)):
                found = sha256_of(file)
                if found != expected:
                    raise ShardError(
                        f"{file}: altered: expected sha256 {expected}, found {found}; copy it again or prepare again"
                    )
            ends = self._ends[number]
            if ends[-1] != shard.tokens or np.any(ends[1:] <= ends[:-1]):
                self._refuse_ends(number)
            if self._tokens[number].max() >= self.meta.vocab_size:
                where = int(self._tokens[number].argmax())
                self._refuse_token(self._first_token[number] + where, int(self._tokens[number][where]))

    def _refuse_ends(self, shard: int) -> None:
        meta = self.meta.shards[shard]
        raise ShardError(
            f"{self.directory / meta.file}.index: document ends must rise and end at {meta.tokens}; prepare again"
        )

    def _refuse_token(self, position: int, token: int) -> None:
        shard = bisect_right(self._first_token, position) - 1
        raise ShardError(
            f"{self.directory / self.meta.shards[shard].file}: token {position - self._first_token[shard]} is {token},"
            f" outside the vocabulary of {self.meta.vocab_size}; the file was altered, copy it again or prepare again"
        )
