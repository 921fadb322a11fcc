"""`replay`: the exact documents of one step of a run, from the run's order.json and the shards alone."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Len

from common.errors import DataError
from common.untrusted_files import read_json, typed
from data_pipeline.errors import OrderError, SourceError
from data_pipeline.identity import explain_mismatch
from data_pipeline.mixture import Mixture
from data_pipeline.moved_data import found_again
from data_pipeline.order import BatchChanges, BatchSize
from data_pipeline.replay_source import ReplaySource
from data_pipeline.replay_sources import OPENERS
from data_pipeline.round_order import RoundsOrder, Selection, selection_path
from data_pipeline.source import DocumentSpan


@dataclass(frozen=True)
class ReplayConfig:
    """Prints the documents that a run trained on, or will train on, in one step."""

    run: str
    """Run directory, or its order.json."""
    step: int
    """Step whose global batch to print, from 0, through all rounds; after a rollback, the step of its data."""
    rows: int = 0
    """Print at most this many sequences of the batch; 0: all."""
    characters: int = 100
    """Length of the excerpts; 0: the whole text."""
    shards: list[str] = field(default_factory=list)
    """Where the run's data lie now, if they were moved: their directories, or a folder that holds them."""
    json: bool = False
    """Print one JSON object per document instead of text."""

    def __post_init__(self) -> None:
        for name in ("rows", "characters"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class ReplayedDocument:
    """The part of a document in one sequence of the batch."""

    row: int
    """Number of the sequence in the global batch."""
    sample: int
    """Number of the sample in the run's source."""
    directory: str
    """Shard directory, or where else the data lie."""
    span: DocumentSpan
    """Shard, document and token range."""
    place: str
    """The same for people; of word images, the image's name."""
    text: str
    """Decoded tokens, special ones included; of images, their ids; of word images, the label."""


def replay(config: ReplayConfig) -> Iterator[ReplayedDocument]:
    """The documents of global batch `config.step`, row by row.

    Raises:
        FileNotFoundError: there is no order.json.
        DataError: order.json is broken, or the shards are not those of the run.
    """
    path = Path(config.run)
    path = path / "order.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; give a run directory (it has an order.json) with --run")
    sources, order = _open(path, config.shards)
    mixture = Mixture([entry.source for entry in sources])
    batch = order.batch(config.step)
    for row, index in enumerate(batch[: config.rows or None].tolist()):
        found = sources[mixture.locate(index)[0]]
        sample = mixture.sample(index)
        for span in mixture.documents(index):
            yield ReplayedDocument(row, index, found.place, span, found.locate(span), found.describe(sample, span))


def show(config: ReplayConfig) -> Iterator[str]:
    """The same as lines for the terminal, or as JSON."""
    return (as_json if config.json else as_text)(replay(config), config.characters)


def as_text(documents: Iterator[ReplayedDocument], characters: int) -> Iterator[str]:
    """Lines for the terminal: one per sequence, and one below it per document."""
    row = -1
    for found in documents:
        if found.row != row:
            row = found.row
            yield f"row {row}: sample {found.sample} of {found.directory}"
        yield f"  {found.place}: {_excerpt(found.text, characters)!r}"


def as_json(documents: Iterator[ReplayedDocument], characters: int) -> Iterator[str]:
    """One JSON object per document."""
    for found in documents:
        content = {"row": found.row, "sample": found.sample, "directory": found.directory, **vars(found.span)}
        yield json.dumps(
            {**content, "place": found.place, "text": _excerpt(found.text, characters)}, ensure_ascii=False
        )


Size = Annotated[int, Ge(1), Le(2**53)]


@dataclass(frozen=True)
class _OrderFile:
    """The fields of order.json that every kind of data has."""

    sizes: Annotated[list[Size], Len(1, 2**16)]
    batch_size: BatchSize
    seed: Annotated[int, Ge(-(2**63)), Le(2**63)]
    weights: list[float] | None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    batch_changes: BatchChanges = field(default_factory=list)


def _open(path: Path, elsewhere: Sequence[str]) -> tuple[list[ReplaySource], RoundsOrder]:
    content = read_json(path, DataError)
    kind = content.get("kind", "tokens") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in OPENERS:
        raise DataError(f"{path}: data of kind {kind!r} cannot be replayed; known are {', '.join(OPENERS)}")
    head = typed(_OrderFile, content, f"{path}: not the order of a run", DataError)
    try:
        sources = OPENERS[kind](found_again(content, kind, path, elsewhere))
        later = [Selection.load(selection_path(path.parent, entry["round"])) for entry in head.rounds]
        order = RoundsOrder(head.sizes, head.batch_size, head.seed, head.weights, later)
        order.restart(head.batch_size, head.batch_changes)
    except (OrderError, SourceError) as error:
        raise DataError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: not the order of a run, as far as can be read ({type(error).__name__}: {error})"
        ) from error
    sizes = [len(entry.source) for entry in sources]
    if sizes != order.sizes:
        places = ", ".join(entry.place for entry in sources)
        raise DataError(
            f"{path}: the run's sources had {order.sizes} samples, the shards in {places} have"
            f" {sizes}; they were written again since, so the run's batches are gone"
        )
    then, now = ({"rounds": entries.get("rounds", [])} for entries in (content, order.identity()))
    if difference := explain_mismatch(then, now):
        raise DataError(f"{path}: the selections in {path.parent / 'rounds'} are not those of the run: {difference}")
    return sources, order


def _excerpt(text: str, characters: int) -> str:
    return text if not characters or len(text) <= characters else f"{text[:characters]}..."
