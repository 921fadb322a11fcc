"""Images for `prepare`: a document is a record of one or several images, the ids of each in raster order.

There is no bos, eos or separator: positions alone tell images apart (docs/methods/delvm.md: visual sentences).

Cost: that of cutting the images (pairs/pairs.py) and the tokenizer's.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.errors import NoMasksError, PairError
from data_pipeline.pairs.pairs import PairsConfig, PairSet, Stretch
from data_pipeline.shards.encoding import Encode
from data_pipeline.shards.parts import Plan, Unit, content_hash, cut, group, part_bytes_for, refuse_twice
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.read_part import RejectLog
from data_pipeline.shards.workspace import Workspace
from tokenizer.inputs.images import ImageError

REASONS = {NoMasksError: "masks", PairError: "pair", ImageError: "image"}
"""Why a row cannot be used: error -> kind of reject."""


class ReadPairs(PipelineStep):
    """Yields the records of part `rank` of the plan, in order, with `images` (uint8 [S, S, 3] each) in their metadata.

    A row that cannot be used loses all its records, and counts as so many.

    Args:
        workspace: where the plan is and the log goes.
        config: how images become records.
        inputs: files and folders.
        image_size: S.
    """

    name = "Read pairs"
    type = "📖 - READER"

    def __init__(self, workspace: str, config: PairsConfig, inputs: Sequence[str], image_size: int):
        super().__init__()
        self.workspace = workspace
        self.config = config
        self.inputs = list(inputs)
        self.image_size = image_size

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read part `rank`; `data` must be empty, because the step begins a pipeline."""
        workspace = Workspace(Path(self.workspace))
        pairs = PairSet(self.config, self.inputs, self.image_size)
        log = RejectLog()
        done = 0
        for unit in Plan.load(workspace.plan).parts[rank]:
            log.begin(unit)
            for item in range(unit.start, unit.stop):
                consumed = done + unit.size * (item + 1 - unit.start) // (unit.stop - unit.start)
                try:
                    for record in pairs.records_of(item):
                        metadata = {"consumed": consumed, "images": pairs.pair(record)}
                        yield Document(text="", id=pairs.name(record), metadata=metadata)
                        self.stat_update("documents")
                except tuple(REASONS) as error:
                    kind = next(kind for problem, kind in REASONS.items() if isinstance(error, problem))
                    log.reject(kind, pairs.row_number(item), str(error), count=self.config.records_per_item)
            done += unit.size
        log.save(workspace.reject_log(rank))


@dataclass(frozen=True)
class PairsEncoding:
    """Ids of the images, one after the other."""

    batch_size: int = 64 * 3 * 256 * 256
    """Bytes of pixels."""

    def size_of(self, document: Document) -> int:
        """Bytes of its pixels."""
        return sum(image.nbytes for image in document.metadata["images"])

    def open(self, tokenizer: Path) -> Encode:
        """Raises VisualTokenizerError when the copy of the tokenizer was damaged."""
        from tokenizer.visual.load import load_visual_tokenizer

        loaded = load_visual_tokenizer(tokenizer)

        def encode_documents(documents: Sequence[Document]) -> tuple[list[list[int]], int]:
            images_BHWC = np.stack([image for document in documents for image in document.metadata["images"]])
            with one_thread():
                ids_BN = loaded.encode(images_BHWC)
            return ids_BN.reshape(len(documents), -1).tolist(), images_BHWC.nbytes

        return encode_documents


class PairsRecipe:
    """Images of `config`, for the visual tokenizer in `directory`."""

    def __init__(self, config: PrepareConfig, pairs: PairsConfig, directory: Path) -> None:
        from tokenizer.visual.load import load_visual_tokenizer

        self.config, self.pairs = config, pairs
        self.tokenizer = load_visual_tokenizer(directory)
        # The path of a link, not of its target: its name says how to read it.
        self.inputs = [os.path.abspath(entry) for entry in config.input]  # noqa: PTH100

    def plan(self) -> Plan:
        """Stretches of items; an item's size is that of the pixels to encode, which is what takes the time."""
        pair_set = PairSet(self.pairs, self.inputs, self.tokenizer.image_size)
        item_bytes = self.pairs.records_per_item * self.pairs.images_per_record * 3 * self.tokenizer.image_size**2
        units = []
        first = 0
        for stretch in pair_set.stretches:
            path, stop = stretch.table.path, first + stretch.items
            units.append(Unit("pairs", str(path), path.name, first, stop, stretch.items * item_bytes))
            first = stop
        refuse_twice(unit.path for unit in units)
        part_bytes = part_bytes_for(self.config, sum(unit.size for unit in units))
        inputs = {
            "files": [_describe(stretch) for stretch in pair_set.stretches],
            "pairs": asdict(self.pairs),
            "part_bytes": part_bytes,
            "tokenizer": {
                "hash": self.tokenizer.hash,
                "vocab_size": self.tokenizer.vocab_size,
                "bos_token_id": None,
                "eos_token_id": None,
                "image_size": self.tokenizer.image_size,
                "grid": self.tokenizer.grid,
                "tokens_per_image": self.tokenizer.tokens_per_image,
            },
        }
        return Plan(group([piece for unit in units for piece in cut(unit, part_bytes)], part_bytes), inputs)

    def copy_tokenizer(self, target: Path) -> None:
        """Saves both files of the tokenizer."""
        self.tokenizer.save(target)

    def reader(self, workspace: str) -> PipelineStep:
        """Reads records."""
        return ReadPairs(workspace, self.pairs, self.inputs, self.tokenizer.image_size)

    def encoding(self) -> PairsEncoding:
        """Ids of the images."""
        return PairsEncoding()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for linear algebra: sums split differently round differently, and a code may flip with them."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _describe(stretch: Stretch) -> dict[str, Any]:
    """A table by its content: name, stored bytes and hash."""
    files = stretch.table.files()
    sizes = [file.stat().st_size for file in files]
    return {"name": stretch.table.path.name, "size": sum(sizes), "hash": content_hash(files)}
