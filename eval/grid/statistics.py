"""Statistics that the reports of all grids share: paired differences and spreads over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

Measured = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""{variant: {seed: content of cell.json}}."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Variant minus base over the seeds that both have."""

    mean: float
    standard_error: float
    half_width: float
    """Half of the 95 % confidence interval (Student's t)."""
    seeds: int

    @property
    def low(self) -> float:
        """Lower end of the confidence interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the confidence interval."""
        return self.mean + self.half_width

    @property
    def clear(self) -> bool:
        """Whether the confidence interval leaves out zero."""
        return abs(self.mean) > self.half_width


def paired_difference(variant: Mapping[int, float], base: Mapping[int, float]) -> PairedDifference:
    """The mean of per-seed differences and its standard error; infinite with fewer than two common seeds."""
    from scipy.stats import t

    differences = [variant[seed] - base[seed] for seed in variant if seed in base]
    count = len(differences)
    if count == 0:
        return PairedDifference(math.nan, math.inf, math.inf, 0)
    error = deviation(differences) / math.sqrt(count) if count > 1 else math.inf
    factor = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) if count > 1 else math.inf
    return PairedDifference(mean(differences), error, factor * error, count)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample, 0 of a single value; NaN where a run diverged, which `stdev` cannot take."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) if len(values) > 1 else 0.0


def spread(values: Iterable[float], digits: int = 4, factor: float = 1) -> str:
    """``mean ± sd`` of the values (over seeds) times `factor`, the single value, or nothing where there is none."""
    scaled = [factor * value for value in values]
    if not scaled:
        return ""
    text = f"{mean(scaled):.{digits}f}"
    return text + (f" ± {deviation(scaled):.{digits}f}" if len(scaled) > 1 else "")


def valid_metric(cells: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    """{seed: value} of one validation number."""
    return {seed: cell["valid"][name] for seed, cell in cells.items() if name in cell["valid"]}


def verdict(difference: PairedDifference, unit: str, base: str) -> str:
    """A paired difference of losses in one sentence: lower, higher, or within noise."""
    if difference.seeds < 2:
        judgement = "one common seed: no statement about noise"
    elif difference.clear:
        judgement = f"{'lower' if difference.mean < 0 else 'higher'} loss than `{base}`, beyond the noise of the seeds"
    else:
        judgement = f"not distinguishable from `{base}`"
    return f"{difference.mean:+.4f} {unit} ({difference.seeds} seeds): {judgement}."


def bits_per_byte(cells: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """{seed: mean bits per byte over the validation languages}: what models of different tokenizers are compared by."""
    found = {}
    for seed, cell in cells.items():
        values = [value for name, value in cell["valid"].items() if name.startswith("bits_per_byte/")]
        if values:
            found[seed] = mean(values)
    return found
