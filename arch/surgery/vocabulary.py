"""Which rows of the donor's embedding stay: the map that `python -m tokenizer compress` writes (tiny_lm, section 4).

    vocabulary_map.json   {"format": 1, "donor_hash": ..., "hash": ..., "donor_vocab_size": N, "kept": [old id, ...]}

`kept[i]` is the donor's id of the new id i, ascending. All kept pieces are the donor's, so no row is drawn at random.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from arch.surgery.errors import CalibrationError, SurgeryError
from common.untrusted_files import read_json

MAP_FILE = "vocabulary_map.json"


@dataclass(frozen=True)
class VocabularyMap:
    """New token ids and the donor's."""

    path: Path
    """The file that it was read from."""
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


def read_vocabulary_map(path: str | Path) -> VocabularyMap:
    """Read a vocabulary map.

    Args:
        path: the file, or the directory of a compressed tokenizer.

    Raises:
        FileNotFoundError: it is not there.
        SurgeryError: it is not a map of format 1, or its ids do not ascend from 0 within the donor's vocabulary.
    """
    path = Path(path)
    file = path / MAP_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such vocabulary map; give the --out of `python -m tokenizer compress`")
    content = read_json(file, SurgeryError)
    try:
        version, size, kept = content["format"], content["donor_vocab_size"], content["kept"]
        donor_hash, new_hash = str(content["donor_hash"]), str(content["hash"])
        ascending = all(old < following for old, following in itertools.pairwise(kept))
        valid = bool(kept) and ascending and kept[0] >= 0 and kept[-1] < size
        rows = torch.tensor(kept, dtype=torch.int64)
    except (ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise SurgeryError(f"{file}: not a vocabulary map ({type(error).__name__}: {error})") from None
    if version != 1 or not valid:
        raise SurgeryError(
            f"{file}: expected format 1 and `kept` ascending below donor_vocab_size {size}; compress again"
        )
    return VocabularyMap(file, donor_hash, new_hash, rows)


__all__ = ["MAP_FILE", "VocabularyMap", "read_vocabulary_map"]
