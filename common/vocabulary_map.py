"""vocabulary_map.json of a compressed tokenizer: which piece of the donor each of its ids was.

    {"format": 1, "donor_hash": ..., "hash": ..., "donor_vocab_size": 49152, "kept": [0, 1, 2, 17, ...]}

`kept[new id]` is the donor's id; it ascends. Embedding rows and token shards follow it. The hashes are
`tokenizer_hash`es of the donor and of the tokenizer beside the file.
"""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from common.errors import InputError
from common.untrusted_files import read_json, typed

MAP_FILE = "vocabulary_map.json"
FORMAT = 1
MAX_VOCABULARY = 2**24
"""Ids that a donor can have; tables of that length are made from a file's word."""


class VocabularyMapError(InputError, ValueError):
    """No map, or one that cannot be trusted."""


@dataclass(frozen=True)
class VocabularyMap:
    """The content of vocabulary_map.json."""

    donor_hash: str
    hash: str
    donor_vocab_size: Annotated[int, Ge(1), Le(MAX_VOCABULARY)]
    kept: list[int]
    format: int = FORMAT

    def save(self, directory: Path) -> None:
        """Write it beside a tokenizer."""
        (directory / MAP_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> "VocabularyMap":
        """Read and check it.

        Raises:
            VocabularyMapError: there is none, or it is broken or of another format.
        """
        path = Path(directory) / MAP_FILE
        if not path.is_file():
            raise VocabularyMapError(
                f"{path}: not found; give the --output of `python -m tokenizer compress`, which holds one"
            )
        content = read_json(path, VocabularyMapError)
        loaded = typed(cls, content, f"{path}: not a vocabulary map; compress again", VocabularyMapError)
        bounded = [-1, *loaded.kept, loaded.donor_vocab_size]
        rising = all(old < following for old, following in pairwise(bounded))
        unknown = content.keys() - vars(loaded).keys()
        if loaded.format != FORMAT or not loaded.kept or not rising or unknown:
            raise VocabularyMapError(
                f"{path}: expected format {FORMAT} and rising ids below donor_vocab_size in `kept`; compress again"
            )
        return loaded

    @property
    def new_ids(self) -> np.ndarray:
        """New id of every id of the donor, [donor_vocab_size] int64; -1 where the piece was dropped."""
        table = np.full(self.donor_vocab_size, -1, dtype=np.int64)
        table[self.kept] = np.arange(len(self.kept))
        return table
