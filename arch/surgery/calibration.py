"""Rows of tokens to judge a model by, from the shard directories that `python -m data_pipeline prepare` writes.

A row is S consecutive tokens of one shard; documents meet inside rows, as in packed training rows, and are not masked.

Shapes: N rows, S tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from arch.surgery.errors import CalibrationError
from common.token_shards import Meta


@dataclass(frozen=True)
class Shards:
    """Shard directories of one tokenizer, mapped into memory."""

    directories: tuple[Path, ...]
    """Where they lie."""
    tokenizer_hash: str
    """Of the tokenizer that made the ids."""
    vocab_size: int
    """Every id is below this."""
    streams: tuple[np.memmap, ...]
    """The tokens of every shard."""

    def rows(self, sequence_length: int) -> int:
        """How many whole rows there are."""
        return sum(len(stream) // sequence_length for stream in self.streams)


def open_shards(directories: Sequence[str | Path]) -> Shards:
    """Map the shards of these directories into memory.

    Raises:
        FileNotFoundError: no such directory.
        ShardError: a directory is not finished, or a file is not as long as `meta.json` says.
        CalibrationError: no directory is given, or two are of different tokenizers.
    """
    if not directories:
        raise CalibrationError("calibration: name at least one directory of token shards")
    metas = [(Path(directory), Meta.load(directory)) for directory in directories]
    first_directory, first = metas[0]
    streams = []
    for directory, meta in metas:
        if meta.tokenizer_hash != first.tokenizer_hash:
            raise CalibrationError(f"{directory} and {first_directory}: shards of different tokenizers")
        meta.check_files(directory)
        streams += [meta.map_tokens(directory, shard) for shard in meta.shards]
    return Shards(tuple(directory for directory, _ in metas), first.tokenizer_hash, first.vocab_size, tuple(streams))


def draw_rows(shards: Shards, counts: Sequence[int], sequence_length: int, seed: int) -> list[torch.Tensor]:
    """Disjoint sets of rows, drawn without replacement from all whole rows of all shards.

    Args:
        shards: where from.
        counts: how many rows every set has.
        sequence_length: S.
        seed: decides which rows; more rows of the last set leave the first sets as they are.

    Returns:
        One int64 tensor [count, S] for every entry of `counts`.

    Raises:
        CalibrationError: there are too few tokens, or an id is not below the shards' `vocab_size`.
    """
    ends = np.cumsum([len(stream) // sequence_length for stream in shards.streams])
    available, needed = shards.rows(sequence_length), sum(counts)
    if needed > available:
        raise CalibrationError(
            f"{', '.join(map(str, shards.directories))}: {needed} rows of {sequence_length} tokens are needed, "
            f"there are {available}; name more shards, or ask for fewer or shorter rows"
        )
    chosen = np.random.default_rng(seed).permutation(available)[:needed]
    rows_NS = np.empty((needed, sequence_length), dtype=np.int64)
    for row, number in enumerate(chosen):
        shard = int(np.searchsorted(ends, number, side="right"))
        start = (int(number) - (int(ends[shard - 1]) if shard else 0)) * sequence_length
        rows_NS[row] = shards.streams[shard][start : start + sequence_length]
        if (largest := rows_NS[row].max(initial=0)) >= shards.vocab_size:
            raise CalibrationError(
                f"{shards.streams[shard].filename}: token id {largest} after token {start}, "
                f"but meta.json gives a vocabulary of {shards.vocab_size}; prepare the shards again"
            )
    return list(torch.from_numpy(rows_NS).split(list(counts)))


__all__ = ["Shards", "draw_rows", "open_shards"]
