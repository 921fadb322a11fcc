"""What `prepare` has to know of one kind of raw material. There are two: text.py and pairs.py.

recipe.plan()      the parts, and what they are made from      -> plan.json, later meta.json
recipe.reader()    part -> documents                           a step of every task
recipe.encoding()  documents -> ids                            what `WriteShard` writes
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.errors import PrepareError
from data_pipeline.shards.parts import Plan
from data_pipeline.shards.prepare_config import PrepareConfig

Encode: TypeAlias = Callable[[Sequence[Document]], tuple[Sequence[Sequence[int]], int]]
"""Documents -> ids of each as they are stored, and the raw bytes that they all stand for."""


class Encoding(Protocol):
    """How documents become ids. It is pickled and sent to the tasks, so it holds settings only."""

    @property
    def batch_size(self) -> int:
        """Size of the documents that are encoded at a time: large enough to be fast, small enough for memory."""

    def size_of(self, document: Document) -> int:
        """Size of one document, in the unit of `batch_size`."""

    def open(self, tokenizer: Path) -> Encode:
        """The encoder of a copied tokenizer."""


class Recipe(Protocol):
    """One kind of raw material."""

    def plan(self) -> Plan:
        """The parts; `inputs` names files, options and under `tokenizer` its hash, vocab_size, bos and eos."""

    def copy_tokenizer(self, target: Path) -> None:
        """Save the tokenizer beside the shards."""

    def reader(self, workspace: str) -> PipelineStep:
        """The step that yields the documents of a part, with `consumed` in their metadata, and logs its rejects."""

    def encoding(self) -> Encoding:
        """How they become ids."""


def open_recipe(config: PrepareConfig) -> Recipe:
    """The recipe for `config`: pairs of images if the tokenizer is a visual one, else text.

    Raises PrepareError when `pairs` is given without a visual tokenizer, or a visual tokenizer without `pairs`.
    """
    from tokenizer.visual.load import find_visual_tokenizer

    visual = find_visual_tokenizer(config.tokenizer)
    if config.pairs is None:
        if visual is not None:
            raise PrepareError(
                f"{config.tokenizer}: a visual tokenizer encodes images; say with --pairs.task how they become records"
            )
        from data_pipeline.shards.text import TextRecipe

        return TextRecipe(config)
    if not Path(config.tokenizer).exists():
        raise FileNotFoundError(f"{config.tokenizer}: no such directory of a visual tokenizer")
    if visual is None:
        raise PrepareError(
            f"{config.tokenizer}: pairs of images need a visual tokenizer (`python -m tokenizer visual`), and this is"
            " none; leave pairs out to prepare text"
        )
    from data_pipeline.shards.pairs import PairsRecipe

    return PairsRecipe(config, config.pairs, visual)
