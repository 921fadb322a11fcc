"""Which setting is fastest on this machine: the search of `python -m pretrain bench`, whatever measures a candidate.

    stages      0, 1, 2, 3 at the configured micro-batch, not compiled; nothing fits: half the micro-batch, again
    reference   stage 0 again: how far two measurements of the same thing lie apart
    micro-batch doubled while that is faster, or else halved while that is faster, at the best stage
    compile     torch.compile at the best of these
    own         the configuration's own setting, if it was none of them
    reference   once more, at the end

One coordinate after the other costs about ten candidates where the whole grid would cost fifty. Accumulation needs no
search: it follows from the micro-batch, the ranks and the global batch, which is the run's own and never changed.
Candidates whose speeds lie within the spread of the reference are equal, and of equals the simplest wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import log2
from statistics import median
from typing import Literal

STAGES = (0, 1, 2, 3)
Status = Literal["ok", "out of memory", "too slow", "failed", "no time"]


@dataclass(frozen=True)
class Candidate:
    """One setting."""

    zero_stage: int
    micro_size: int
    """Samples of one forward pass on one rank."""
    compile: bool
    precision: str
    """fp32 or bf16."""


@dataclass(frozen=True)
class Measurement:
    """What one launch of a candidate gave."""

    status: Status
    rates: tuple[float, ...] = ()
    """Units (tokens, samples) per second of all ranks together, in each timed step."""
    peak_memory: float = 0.0
    """Bytes of the rank that took the most."""
    data_wait: float = 0.0
    """Share of the time that rank 0 waited for batches, which rates leave out: median of the timed steps."""
    detail: str = ""
    """Why there is no rate."""
    seconds: float = 0.0
    """Of the whole launch."""
    load: float = 0.0
    """What else the machine did: its load per core just before the launch."""

    @property
    def rate(self) -> float:
        """Median of the timed steps; 0 where there are none."""
        return median(self.rates) if self.rates else 0.0


@dataclass
class Findings:
    """Every measurement, in the order in which they were made."""

    configured: Candidate
    """The configuration's own setting."""
    rows: dict[Candidate, list[Measurement]] = field(default_factory=dict)
    """Several of the reference, one of every other."""
    reference: Candidate | None = None
    """Measured several times: stage 0 at the configured micro-batch or, if that fails, the first that works."""

    def rate(self, candidate: Candidate) -> float:
        """Units per second, the median of all measurements; 0 if none worked."""
        rates = [measurement.rate for measurement in self.rows.get(candidate, []) if measurement.rates]
        return median(rates) if rates else 0.0

    @property
    def working(self) -> list[Candidate]:
        """Candidates with a rate."""
        return [candidate for candidate in self.rows if self.rate(candidate)]

    @property
    def spread(self) -> float:
        """How far measurements of the reference lie apart, as a share of their median."""
        if self.reference is None:
            return 0.0
        rates = [measurement.rate for measurement in self.rows[self.reference] if measurement.rates]
        return (max(rates) - min(rates)) / median(rates)

    @property
    def winner(self) -> Candidate | None:
        """The simplest of those that are as fast as the fastest; None if nothing worked."""
        fastest = max(map(self.rate, self.working), default=0.0)
        equal = [candidate for candidate in self.working if self.rate(candidate) >= fastest * (1 - self.spread)]
        return min(equal, key=self._complexity, default=None)

    def _complexity(self, candidate: Candidate) -> tuple[bool, bool, int, float]:
        own = self.configured
        return (
            candidate.precision != own.precision,
            candidate.compile,
            candidate.zero_stage,
            abs(log2(candidate.micro_size / own.micro_size)),
        )


def search(
    configured: Candidate,
    precisions: Mapping[int, str],
    allowed: Callable[[int], bool],
    measure: Callable[[Candidate, int], Measurement],
) -> Findings:
    """Measures candidates, one coordinate after the other.

    Args:
        configured: the configuration's own setting.
        precisions: what each ZeRO stage trains in.
        allowed: whether the global batch can be cut into micro-batches of this size.
        measure: launches a candidate; the number tells repetitions of the same one apart.
    """
    found = Findings(configured)

    def look(candidate: Candidate, again: bool = False) -> Candidate:
        made = found.rows.setdefault(candidate, [])
        if again or not made:
            made.append(measure(candidate, len(made)))
        return candidate

    def look_at_stages(micro_size: int) -> None:
        for stage in STAGES:
            look(Candidate(stage, micro_size, False, precisions[stage]))

    size = configured.micro_size
    look_at_stages(size)
    while not found.working and size % 2 == 0 and allowed(size // 2):
        size //= 2
        look_at_stages(size)
    if not found.working:
        return found
    found.reference = look(found.working[0], again=True)
    best = found.winner
    assert best is not None
    for larger in (True, False):
        here = best
        while (other := _resized(best, larger)) is not None and allowed(other.micro_size):
            if not found.rate(look(other)) > found.rate(best) * (1 + found.spread):
                break
            best = other
        if best is not here:
            break
    look(replace(best, compile=True))
    look(configured)
    look(found.reference, again=True)
    return found


def _resized(candidate: Candidate, larger: bool) -> Candidate | None:
    """The same with twice or half the micro-batch; None where there is no half."""
    if larger:
        return replace(candidate, micro_size=2 * candidate.micro_size)
    return None if candidate.micro_size % 2 else replace(candidate, micro_size=candidate.micro_size // 2)
