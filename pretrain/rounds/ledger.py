"""The ledger of a round: the mean loss of every unit of the data, each once, in one file; and what it is made from.

    RUN/rounds/
        round_1.batches.f32        losses as they were in training: float32 pairs (mean loss, weight), one per batch
        round_1.samples.f32        the same for every sample, where the ledger shall hold samples taken from the log
        round_1.WEIGHTS.partial    the same while the frozen model rescores; WEIGHTS names the model by its content
        round_1.safetensors        the ledger after round 1
        round_2.selection.safetensors   the units that round 2 serves

Reading a ledger:

    from safetensors.numpy import load_file
    ledger = load_file("RUN/rounds/round_1.safetensors")            # ids int64, losses float32, counts float32
    hardest = ledger["ids"][ledger["losses"].argsort()[::-1][:10]]  # numbers of batches (or samples), hardest first

`ids` follow the sequence in which round 1 served them. `losses` are nats per labelled token (the task's per-sample sums
over its weights) and NaN where a unit has no label; `counts` are the weights: labelled tokens for a language model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.atomic_files import fsync, write_whole
from common.untrusted_files import parse_json, typed
from pretrain.errors import LedgerError

PAIR = np.dtype([("loss", "<f4"), ("count", "<f4")])
"""One record of a loss file."""


class LossFile:
    """Loss pairs at their places in a flat file: writing a place again replaces it, so nothing can be there twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        """Whole pairs in the file; a pair that a kill cut off does not count."""
        return self.path.stat().st_size // PAIR.itemsize if self.path.is_file() else 0

    def write(self, first: int, losses_N: np.ndarray, counts_N: np.ndarray) -> None:
        """Puts N pairs at place `first` and forces them to disk; a gap before them is filled with (NaN, 0)."""
        present = len(self)
        pairs_N = np.zeros(len(losses_N) + max(0, first - present), PAIR)
        pairs_N["loss"] = np.nan
        pairs_N["loss"][-len(losses_N) :], pairs_N["count"][-len(losses_N) :] = losses_N, counts_N
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self.path.is_file() else "wb") as file:
            file.seek(min(first, present) * PAIR.itemsize)
            file.write(pairs_N.tobytes())
            file.flush()
            os.fsync(file.fileno())
        fsync(self.path.parent)

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Losses and counts of places [first, last), float32 each; (NaN, 0) where the file does not reach."""
        pairs_N = np.zeros(last - first, PAIR)
        pairs_N["loss"] = np.nan
        present = max(0, min(last, len(self)) - first)
        if present:
            pairs_N[:present] = np.fromfile(self.path, PAIR, present, offset=first * PAIR.itemsize)
        return pairs_N["loss"].copy(), pairs_N["count"].copy()


@dataclass(frozen=True)
class Ledger:
    """Mean loss of every unit, each once."""

    ids_N: np.ndarray
    """Numbers of the units (batches of round 1, or samples), in the sequence in which round 1 served them: int64."""
    losses_N: np.ndarray
    """Mean loss: float32; NaN where a unit has no label or was never measured."""
    counts_N: np.ndarray
    """What each mean was divided by: float32."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the ledger was made from (JSON-able): two ledgers of the same origin are the same."""

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors: dict[str, np.ndarray] = {
            "ids": self.ids_N.astype(np.int64),
            "losses": self.losses_N.astype(np.float32),
            "counts": self.counts_N.astype(np.float32),
        }
        write_whole(path, save(tensors, {"ledger": json.dumps(self.origin, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Reads what `save` wrote.

        Raises:
            LedgerError: the file is missing or is not a ledger.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                head = file.metadata()["ledger"]
                tensors = [file.get_tensor(name) for name in ("ids", "losses", "counts")]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"{path}: not a ledger of losses ({type(error).__name__}: {error})") from error
        origin = typed(dict[str, Any], parse_json(head, f"{path}: origin", LedgerError), f"{path}: origin", LedgerError)
        found = [(str(tensor.dtype), tensor.shape) for tensor in tensors]
        units = tensors[0].size
        if found != [("int64", (units,)), ("float32", (units,)), ("float32", (units,))]:
            raise LedgerError(
                f"{path}: expected ids int64, losses and counts float32, one of each per unit; got {found}"
            )
        ids_N, losses_N, counts_N = tensors
        if units and (ids_N.min() < 0 or np.unique(ids_N).size != units or not np.all(counts_N >= 0)):
            raise LedgerError(
                f"{path}: a unit is there twice, or its number or weight is negative; restore it from a copy"
            )
        return cls(ids_N, losses_N, counts_N, origin)

    def updated(self, ids_K: np.ndarray, losses_K: np.ndarray, counts_K: np.ndarray) -> Ledger:
        """This ledger with newer values of some units; of a unit named several times the last value counts."""
        by_id = np.argsort(self.ids_N, kind="stable")
        places_K = by_id[np.searchsorted(self.ids_N, ids_K, sorter=by_id)]
        losses_N, counts_N = self.losses_N.copy(), self.counts_N.copy()
        losses_N[places_K], counts_N[places_K] = losses_K, counts_K
        return Ledger(self.ids_N, losses_N, counts_N, self.origin)


def unit_means(losses_N: np.ndarray, weights_N: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and weight of every run of `size` samples: float32 [N / size] each; NaN where there is no weight."""
    sums_U = losses_N.reshape(-1, size).sum(axis=1)
    counts_U = weights_N.reshape(-1, size).sum(axis=1)
    means_U = np.divide(sums_U, counts_U, out=np.full_like(sums_U, np.nan), where=counts_U > 0)
    return means_U.astype(np.float32), counts_U.astype(np.float32)
