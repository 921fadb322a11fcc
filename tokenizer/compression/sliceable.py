"""`SliceableTokenizer`: a tokenizer out of which a smaller one can be cut, whatever its format.

sliceable_sentencepiece.py   SentencePiece models, BPE and unigram
sliceable_json.py            tokenizer.json with a BPE model, byte-level or with byte fallback (hub ids and GGUF too)

A cut keeps pieces, scores, order and the priority of merges, and renumbers. A cut is sliceable again.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from tokenizer.compression.derivation import MergeRanks
from tokenizer.encoder import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_NAME = re.compile(r"<.+>|\[.+\]", re.DOTALL)
"""The published rule for pieces that are always kept; byte pieces `<0x41>` match it too."""
CONTEXTS = ("{}", ".{}", "{}.", "\n{}")
"""Where a piece is looked for. Some cannot begin a text (it gets a space), some cannot end one (spaces are cut)."""


class SliceableTokenizer(ABC):
    """A vocabulary with what is needed to cut it.

    Attributes:
        origin: where it came from, for messages.
        format: a few words for reports.
        names: piece of every id; "" where the vocabulary has a hole.
        required: ids that every cut keeps.
        alphabet: ids of the characters without which a cut would lose text (empty with byte pieces).
        merge_ranks: orders of merging, one for each implementation that differs; empty for unigram.
    """

    origin: str
    format: str
    names: list[str]
    required: frozenset[int]
    alphabet: frozenset[int]
    merge_ranks: list[MergeRanks]

    @abstractmethod
    def cut(self, kept: Sequence[int]) -> "SliceableTokenizer":
        """The tokenizer of the ids `kept`, which ascend; id n of the new one is `kept[n]` here."""

    @abstractmethod
    def write(self, directory: Path) -> None:
        """Write the files of the format, for `AutoTokenizer.from_pretrained(directory)`."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """The fastest encoder, single-threaded, without special tokens."""

    @property
    @abstractmethod
    def encoder_file(self) -> tuple[str, bytes]:
        """Name and content of the file that a worker process needs; `open_saved_encoder` reads it."""

    @abstractmethod
    def surface(self, id_: int) -> str | None:
        """The text of a piece; None if it is no text by itself (a part of a character)."""

    @property
    @abstractmethod
    def backend(self) -> Tokenizer:
        """The `tokenizers` pipeline that gives the same ids."""

    @property
    def ids(self) -> list[int]:
        """All ids that are pieces."""
        return [id_ for id_, name in enumerate(self.names) if name]

    @property
    @abstractmethod
    def ordinary(self) -> list[int]:
        """Ids of the pieces that text is cut into: not special tokens, symbols or bytes."""

    def unreachable(self, ids: Sequence[int]) -> set[int]:
        """Those of `ids` that no text is encoded to.

        A piece is reachable if each engine turns its own spelling into it, and, where the piece is a text by itself,
        the whole pipeline gives it for that text, alone or between others (a normaliser or a pre-tokeniser may forbid
        what the engine allows).
        """
        names = [self.names[id_] for id_ in ids]
        lost = {
            id_
            for engine in self._engines()
            for id_, found in zip(ids, engine(names), strict=True)
            if list(found) != [id_]
        }
        waiting = {id_: text for id_ in ids if id_ not in lost and (text := self.surface(id_)) is not None}
        for context in CONTEXTS:
            encodings = self.backend.encode_batch_fast(
                [context.format(text) for text in waiting.values()], add_special_tokens=False
            )
            seen = {id_ for id_, encoding in zip(waiting, encodings, strict=True) if id_ in encoding.ids}
            waiting = {id_: text for id_, text in waiting.items() if id_ not in seen}
        return lost | set(waiting)

    def _engines(self) -> list[Encoder]:
        """Segmentation alone, from a piece's spelling to ids."""
        bare = Tokenizer(tokenizer_models.BPE())
        bare.model = self.backend.model
        return [backend_encoder(bare)]


def backend_encoder(backend: Tokenizer) -> Encoder:
    """The batch encoder of a pipeline; no special token is read out of a text."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def is_special_name(name: str) -> bool:
    """The published rule: "<...>" and "[...]" with something between."""
    return SPECIAL_NAME.fullmatch(name) is not None


def open_sliceable(path: str | Path, loaded: "PreTrainedTokenizerBase") -> SliceableTokenizer:
    """Opens anything that `load_tokenizer` opens, if a smaller tokenizer can be cut out of it.

    Args:
        path: what `load_tokenizer` was given.
        loaded: what it returned.

    Raises:
        TokenizerLoadError: a kind that cannot be cut (WordPiece, word and character models).
    """
    from tokenizer.compression.sliceable_json import open_json
    from tokenizer.compression.sliceable_sentencepiece import find_model, open_model

    model = find_model(path)
    return open_json(loaded, str(path)) if model is None else open_model(model)


def open_saved_encoder(file: Path) -> Encoder:
    """The encoder that `SliceableTokenizer.encoder_file` names."""
    from tokenizer.compression.sliceable_sentencepiece import model_encoder

    if file.suffix == ".model":
        return model_encoder(file.read_bytes())
    return backend_encoder(Tokenizer.from_file(str(file)))
