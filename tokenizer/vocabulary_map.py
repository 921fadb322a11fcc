"""vocabulary_map.json of a compressed tokenizer: which piece of the donor each of its ids was.

    {"format": 1, "donor_hash": ..., "hash": ..., "donor_vocab_size": 49152, "kept": [0, 1, 2, 17, ...]}

`kept[new id]` is the donor's id; it ascends. Embedding rows and token shards follow it. The hashes are
`tokenizer_hash`es of the donor and of the tokenizer beside the file.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

MAP_FILE = "vocabulary_map.json"
FORMAT = 1


class VocabularyMapError(ValueError):
    """No map, or one that cannot be trusted."""


@dataclass(frozen=True)
class VocabularyMap:
    """The content of vocabulary_map.json."""

    donor_hash: str
    hash: str
    donor_vocab_size: int
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
        try:
            loaded = cls(**json.loads(path.read_bytes()))
            ids = np.array(loaded.kept, dtype=np.int64)
            sound = loaded.format == FORMAT and len(ids) > 0 and ids[0] >= 0 and bool(np.all(np.diff(ids) > 0))
            sound = sound and int(ids[-1]) < loaded.donor_vocab_size
        except (ValueError, TypeError) as error:
            raise VocabularyMapError(f"{path}: not a vocabulary map ({error}); compress again") from error
        if not sound:
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
