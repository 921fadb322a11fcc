"""The held-out image pairs that `eval vision` measures on, named in a YAML.

    definitions: {data: null}             optional: {data} in any string stands for it; null: --define data=DIR
    seg:                                  a name of your choice
      input: ["DIR/val.parquet"]          held-out images: the queries
      pairs: {task: ...}                  how they become pairs (data_pipeline/pairs/pairs.py:PairsConfig)
      examples:                           optional: where the example pairs of prompts come from (training images)
        input: ["DIR/train.parquet"]
        pairs: {...}                      fields that differ from those above

Without `examples` the other held-out pairs of the set serve, never the query itself.
Shapes: P pairs, S pixels of a side, n codes of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from tqdm import tqdm

from common.errors import InputError
from data_pipeline.pairs.pairs import PairsConfig, PairSet
from data_pipeline.permutation import permute

DEFINITIONS = "definitions"
"""Key of the YAML that names no set: values for `{name}` in its strings (`eval/grid/preparation.py`)."""


class VisionError(InputError, ValueError):
    """A set, a model or an option that cannot be used; the message names it."""


@dataclass(frozen=True)
class PairsOf:
    """Image files and how they become pairs."""

    input: list[str]
    pairs: PairsConfig

    def load(self, image_size: int, limit: int | None, title: str) -> Pairs:
        """The pairs as arrays; of more than `limit`, those that a fixed permutation puts first.

        Raises:
            VisionError: the records are not pairs, or there is none.
        """
        found = PairSet(self.pairs, self.input, image_size)
        count = len(found) if limit is None else min(limit, len(found))
        chosen = permute(np.arange(len(found)), len(found), 0)[:count] if count < len(found) else np.arange(count)
        records = [found.pair(int(number)) for number in tqdm(chosen, desc=title, unit="pair", leave=False)]
        if not records or len(records[0]) != 2:
            size = len(records[0]) if records else 0
            raise VisionError(f"{title}: expected pairs of images, found {len(records)} records of {size} images")
        inputs, targets = zip(*records, strict=True)
        return Pairs(np.stack(inputs), np.stack(targets))


@dataclass(frozen=True)
class Pairs:
    """Image pairs in memory."""

    inputs_PSS3: np.ndarray
    targets_PSS3: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs_PSS3)


@dataclass(frozen=True)
class VisionSet:
    """One named set."""

    name: str
    held_out: PairsOf
    examples: PairsOf | None
    """None: the other held-out pairs."""

    @property
    def task(self) -> str:
        """The task's name, as in PairsConfig."""
        return self.held_out.pairs.task


def parse_sets(content: Mapping[str, Any], where: str) -> list[VisionSet]:
    """The sets of a YAML's mapping.

    Raises:
        VisionError: naming `where`, the set and the field at fault.
    """
    named = {name: entry for name, entry in content.items() if name != DEFINITIONS}
    if not named:
        raise VisionError(f"{where}: names no set")
    sets = []
    for name, entry in named.items():
        place = f"{where}: {name}"
        _check_fields(entry, {"input", "pairs", "examples"}, {"input", "pairs"}, place)
        held_out = _pairs_of(entry["input"], entry["pairs"], place)
        examples = None
        if (given := entry.get("examples")) is not None:
            place = f"{place}.examples"
            _check_fields(given, {"input", "pairs"}, {"input"}, place)
            differing = given.get("pairs", {})
            _check_fields(differing, {f.name for f in fields(PairsConfig)}, set(), f"{place}.pairs")
            examples = _pairs_of(given["input"], {**entry["pairs"], **differing}, place)
        sets.append(VisionSet(str(name), held_out, examples))
    return sets


def _pairs_of(files: Any, pairs: Any, place: str) -> PairsOf:
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise VisionError(f"{place}.input: expected a list of files, found {files!r}")
    if missing := [file for file in files if not Path(file).exists()]:
        raise VisionError(f"{place}.input: {missing[0]} is not there")
    _check_fields(pairs, {f.name for f in fields(PairsConfig)}, {"task"}, f"{place}.pairs")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairsConfig, "pairs")
    try:
        return PairsOf(files, parser.instantiate_classes(parser.parse_object({"pairs": pairs})).pairs)
    except (ValueError, TypeError, ArgumentError) as error:
        raise VisionError(f"{place}.pairs: {error}") from None


def _check_fields(entry: Any, known: set[str], required: set[str], place: str) -> None:
    if not isinstance(entry, dict):
        raise VisionError(f"{place}: expected a mapping, found {type(entry).__name__}")
    if unknown := sorted(set(map(str, entry)) - known):
        raise VisionError(f"{place}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if missing := sorted(required - set(entry)):
        raise VisionError(f"{place}: {missing[0]} is missing")
