"""What `replay` can open again: one opener per kind of training data.

A run's order.json holds, beside the order, what its task's `replay_description()` returned. The field `kind` names the
opener below; without one it is "tokens". The order's own fields (sizes, batch_size, seed, weights, round, rounds) are
not free for a description.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from common.errors import DataError
from common.untrusted_files import typed
from data_pipeline.replay_source import Describe, ReplaySource
from data_pipeline.shards.sentence_source import SentenceSource
from data_pipeline.shards.token_source import TokenSource
from data_pipeline.source import DocumentSpan, Sample
from tokenizer.load import read_backend


@dataclass(frozen=True)
class _Tokens:
    shards: list[str]
    sequence_length: Annotated[int, Ge(1), Le(2**53)]
    document_mask: bool


@dataclass(frozen=True)
class _Sentences:
    shards: list[str]
    images_per_sentence: Annotated[int, Ge(1), Le(2**16)]
    passes: Annotated[int, Ge(1), Le(2**53)]
    sentence_seed: Annotated[int, Ge(-(2**63)), Le(2**63)]


def open_tokens(description: Mapping[str, Any]) -> list[ReplaySource]:
    """Text: `{"shards": [DIRECTORY, ...], "sequence_length": S, "document_mask": true}`; shows decoded tokens.

    The field `contents` is for moved_data.py."""
    given = typed(_Tokens, description, "order.json", DataError)
    sources = [TokenSource(directory, given.sequence_length, given.document_mask) for directory in given.shards]
    return [ReplaySource(source, str(source.directory), _decoder(source.directory)) for source in sources]


def open_sentences(description: Mapping[str, Any]) -> list[ReplaySource]:
    """Images: `{"kind": "sentences", "shards": [DIRECTORY, ...], "images_per_sentence": 8, "passes": 1,
    "sentence_seed": 0}`; shows ids."""
    given = typed(_Sentences, description, "order.json", DataError)
    arguments = given.images_per_sentence, given.passes, given.sentence_seed
    sources = [SentenceSource(directory, *arguments) for directory in given.shards]
    return [ReplaySource(source, str(source.directory), _ids) for source in sources]


def open_words(description: Mapping[str, Any]) -> list[ReplaySource]:
    """Word images: see data_pipeline/words/replay.py, which needs packages that text does not."""
    from data_pipeline.words.replay import open_words

    return open_words(description)


OPENERS: dict[str, Callable[[Mapping[str, Any]], list[ReplaySource]]] = {
    "tokens": open_tokens,
    "sentences": open_sentences,
    "words": open_words,
}
"""By `kind`."""


def _decoder(directory: Path) -> Describe:
    backend = read_backend(directory / "tokenizer" / "tokenizer.json")
    return lambda sample, span: backend.decode(_row(sample, span).tolist(), skip_special_tokens=False)


def _ids(sample: Sample, span: DocumentSpan) -> str:
    return " ".join(map(str, _row(sample, span).tolist()))


def _row(sample: Sample, span: DocumentSpan) -> np.ndarray:
    """Ids of the document among the sample's inputs."""
    return sample["input_ids"][span.row_start : span.row_start + span.tokens]
