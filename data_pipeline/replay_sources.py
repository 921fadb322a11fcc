"""What `replay` can open again: one opener per kind of training data.

A run's order.json holds, beside the order, what its task's `replay_description()` returned. The field `kind` names the
opener below; without one it is "tokens". The order's own fields (sizes, batch_size, seed, weights, round, rounds) are
not free for a description.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.sentence_source import SentenceSource
from data_pipeline.source import DocumentSpan, Sample, Source
from data_pipeline.token_source import TokenSource

Describe = Callable[[Sample, DocumentSpan], str]


@dataclass(frozen=True)
class ReplaySource:
    """One source of the run, in the order of the run's mixture."""

    source: Source
    """The samples."""
    place: str
    """Where they lie: a shard directory, say."""
    describe: Describe
    """Sample, one of its documents -> the text that shows it."""


def open_tokens(description: Mapping[str, Any]) -> list[ReplaySource]:
    """Text: `{"shards": [DIRECTORY, ...], "sequence_length": S, "document_mask": true}`; shows decoded tokens."""
    sources = [
        TokenSource(directory, description["sequence_length"], description["document_mask"])
        for directory in description["shards"]
    ]
    return [ReplaySource(source, str(source.directory), _decoder(source.directory)) for source in sources]


def open_sentences(description: Mapping[str, Any]) -> list[ReplaySource]:
    """Images: `{"kind": "sentences", "shards": [DIRECTORY, ...], "images_per_sentence": 8, "passes": 1,
    "sentence_seed": 0}`; shows ids."""
    arguments = [description[name] for name in ("images_per_sentence", "passes", "sentence_seed")]
    sources = [SentenceSource(directory, *arguments) for directory in description["shards"]]
    return [ReplaySource(source, str(source.directory), _ids) for source in sources]


OPENERS: dict[str, Callable[[Mapping[str, Any]], list[ReplaySource]]] = {
    "tokens": open_tokens,
    "sentences": open_sentences,
}
"""By `kind`."""


def _decoder(directory: Path) -> Describe:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    return lambda sample, span: backend.decode(_row(sample, span).tolist(), skip_special_tokens=False)


def _ids(sample: Sample, span: DocumentSpan) -> str:
    return " ".join(map(str, _row(sample, span).tolist()))


def _row(sample: Sample, span: DocumentSpan) -> np.ndarray:
    """Ids of the document among the sample's inputs."""
    return sample["input_ids"][span.row_start : span.row_start + span.tokens]
