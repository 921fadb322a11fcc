"""`RoundsOrder`: the order of a run that goes over its data in several rounds (docs/methods/tiny_lm.md: rounds).

    data step     0 .............. D-1 | D ............... | E ...............
    round         1: Order             | 2: Selection      | 3: Selection
                  over all samples     | of round 1's units, in another order each round

A unit is a global batch of round 1, served again exactly as it was, or a single sample. Between two rounds the units of
the next one are chosen and stored, once. Given these files, batch t is still arithmetic on (seed, round, t): nothing
else is kept, and a run resumes at any step of any round as it does in one round.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.untrusted_files import parse_json, typed
from data_pipeline.errors import OrderError
from data_pipeline.order import MAX_STEP, Order

Unit = Literal["batch", "sample"]


@dataclass(frozen=True)
class _Head:
    """What a selection's file says beside its units."""

    round: Annotated[int, Ge(2)]
    first_step: Annotated[int, Ge(1), Le(MAX_STEP)]
    unit: Unit
    settings: dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """The units that one later round serves."""

    round: int
    """The round that serves them: 2 or more."""
    first_step: int
    """Data step at which that round begins."""
    unit: Unit
    """What a unit is: `batch` numbers global batches of round 1, `sample` numbers samples of the source."""
    units: np.ndarray
    """Their numbers, ascending: int64 [N]. A sample that round 1 visited several times stands there as often."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How they were chosen (JSON-able); part of the file, not of the order."""

    def identity(self) -> dict[str, Any]:
        """JSON-able description by content, for the checkpoints of a run."""
        units = np.ascontiguousarray(self.units, dtype="<i8")
        digest = hashlib.sha256(units.tobytes()).hexdigest()
        return {"round": self.round, "first_step": self.first_step, "unit": self.unit, "units_sha256": digest}

    def to_bytes(self) -> bytes:
        """A safetensors file with the tensor `units` and, as metadata, everything else."""
        head = {"round": self.round, "first_step": self.first_step, "unit": self.unit, "settings": dict(self.settings)}
        return save({"units": self.units.astype(np.int64)}, {"selection": json.dumps(head, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> "Selection":
        """Reads what `to_bytes` made.

        Raises:
            OrderError: the file is missing or is not a selection.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                text, units = file.metadata()["selection"], file.get_tensor("units")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise OrderError(
                f"{path}: not a round's selection of units ({type(error).__name__}: {error}); restore it from a copy"
            ) from error
        head = typed(_Head, parse_json(text, str(path), OrderError), str(path), OrderError)
        if units.dtype != np.int64 or units.ndim != 1 or np.any(np.diff(units, prepend=0) < 0):
            raise OrderError(f"{path}: expected units as ascending int64 from 0, found {units.dtype} {units.shape}")
        return cls(units=units, **vars(head))


class RoundsOrder(Order):
    """Order of all rounds of a run, of which the later ones are added as they are chosen.

    With no later round it is an `Order` in every respect, its identity included.

    Args:
        sizes, batch_size, seed, weights: as for `Order`; they describe round 1.
        later: the selections of rounds 2, 3, ... so far.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        later: Sequence[Selection] = (),
    ):
        super().__init__(sizes, batch_size, seed, weights)
        self.later: list[Selection] = []
        for selection in later:
            self.add(selection)

    def add(self, selection: Selection) -> None:
        """Appends the next round.

        Raises:
            OrderError: it is not the next round, or it has no units.
        """
        begun = self.later[-1].first_step if self.later else 0
        if selection.round != len(self.later) + 2 or selection.first_step <= begun or not selection.units.size:
            raise OrderError(
                f"round {selection.round} from data step {selection.first_step} with {selection.units.size} units"
                f" cannot follow round {len(self.later) + 1}, which begins at data step {begun}"
            )
        self.later.append(selection)

    def identity(self) -> dict[str, Any]:
        """As `Order.identity`; the later rounds, if any, by the content of their selections."""
        rounds = {"rounds": [selection.identity() for selection in self.later]} if self.later else {}
        return super().identity() | rounds

    def batch(self, step: int) -> np.ndarray:
        """Sample numbers of the global batch of data step `step`, in whichever round it lies: int64 [batch_size]."""
        if (selection := self._selection(step)) is None:
            return self.first_round(step)
        units = self.units(step, selection.unit)
        return self.first_round(int(units[0])) if selection.unit == "batch" else units

    def first_round(self, step: int) -> np.ndarray:
        """Sample numbers of global batch `step` of round 1, also past its end: int64 [batch_size]."""
        return super().batch(step)

    def units(self, step: int, unit: Unit) -> np.ndarray:
        """The units that data step `step` serves: int64 [1] for batches, [batch_size] for samples."""
        if (selection := self._selection(step)) is None:
            return np.array([step]) if unit == "batch" else self.first_round(step)
        per_step = 1 if unit == "batch" else self.batch_size
        shuffled = Order([selection.units.size], per_step, self.seed, round=selection.round - 1)
        return selection.units[shuffled.batch(step - selection.first_step)]

    def _selection(self, step: int) -> Selection | None:
        """What the round of a data step serves; None in round 1, which serves everything."""
        return next((selection for selection in reversed(self.later) if step >= selection.first_step), None)


def first_visits(order: RoundsOrder, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples of the first `steps` batches of round 1, each once, in the order of their first visit.

    Returns:
        samples: int64 [N]; visits: how often round 1 took each, int64 [N]. 8 bytes per visit while it works.
    """
    stream = np.concatenate([order.first_round(step) for step in range(steps)])
    samples, first, visits = np.unique(stream, return_index=True, return_counts=True)
    by_visit = np.argsort(first, kind="stable")
    return samples[by_visit], visits[by_visit]


def selection_path(run: Path, round: int) -> Path:
    """Where a run keeps the selection of round `round` (2 or more)."""
    return run / "rounds" / f"round_{round}.selection.safetensors"
