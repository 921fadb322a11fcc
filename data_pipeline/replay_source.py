"""`ReplaySource`: what `replay` shows of one source of a run, whatever the kind of data."""

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.source import DocumentSpan, Sample, Source

Describe = Callable[[Sample, DocumentSpan], str]
Locate = Callable[[DocumentSpan], str]


def token_range(span: DocumentSpan) -> str:
    """Where a document of tokens lies."""
    return f"{span.shard} document {span.document}, tokens {span.start} to {span.stop - 1}"


@dataclass(frozen=True)
class ReplaySource:
    """One source of the run, in the order of the run's mixture."""

    source: Source
    """The samples."""
    place: str
    """Where they lie: a shard directory, say."""
    describe: Describe
    """Sample, one of its documents -> the text that shows it."""
    locate: Locate = token_range
    """One of its documents -> where it lies, for people."""
