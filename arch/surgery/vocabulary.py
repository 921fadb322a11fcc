"""Which rows of the donor's embedding stay: those of the `VocabularyMap` that `python -m tokenizer compress` writes.

All kept pieces are the donor's, so no row is drawn at random (docs/methods/tiny_lm.md: compact tokenizer).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from arch.surgery.errors import CalibrationError
from common.vocabulary_map import VocabularyMap


@dataclass(frozen=True)
class KeptRows:
    """The rows of a vocabulary map as a tensor, and tokens in the donor's ids and in new ones."""

    path: Path
    """Where the map was read from."""
    donor_hash: str
    """Hash of the donor's tokenizer."""
    new_hash: str
    """Hash of the new tokenizer."""
    kept: torch.Tensor
    """int64 [new vocabulary]: the donor's id of every new id."""

    def uses_new_ids(self, tokenizer_hash: str) -> bool:
        """Whether ids made by this tokenizer are new ones, or the donor's.

        Raises:
            CalibrationError: they are neither.
        """
        if tokenizer_hash not in (self.donor_hash, self.new_hash):
            raise CalibrationError(
                f"the calibration shards are of tokenizer {tokenizer_hash[:12]}, {self.path} maps "
                f"{self.donor_hash[:12]} to {self.new_hash[:12]}; prepare the shards with one of these two"
            )
        return tokenizer_hash == self.new_hash

    def without_dropped(self, rows_NS: torch.Tensor) -> torch.Tensor:
        """The same tokens without those that have no new id, closed up and cut into rows again, in new ids.

        What does not fill a last row is left off; less than one row becomes one short row, or [0, S] if it has no next
        token.
        """
        flat = rows_NS.flatten()
        new = torch.searchsorted(self.kept, flat).clamp(max=len(self.kept) - 1)
        stays = new[self.kept[new] == flat]
        length = rows_NS.shape[1]
        if 2 <= len(stays) < length:
            return stays[None]
        return stays[: len(stays) // length * length].view(-1, length)


def read_kept_rows(path: str | Path) -> KeptRows:
    """Read a vocabulary map: the file, or the directory of a compressed tokenizer.

    Raises:
        VocabularyMapError: it is not there, or is not a map of format 1 whose ids ascend within the donor's vocabulary.
    """
    read = VocabularyMap.load(path)
    return KeptRows(Path(path), read.donor_hash, read.hash, torch.tensor(read.kept))


__all__ = ["KeptRows", "read_kept_rows"]
