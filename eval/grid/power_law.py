"""Scaling laws and their baselines, fitted to errors or losses (docs/methods/ocr.md: scaling laws).

    power       y = (x0 / x)^alpha                        least squares in log-log, closed form
    offset      y = E + A x^-alpha                        least squares of log y, parameters in logarithms
    joint       y = E + A N^-alpha + B D^-beta            the same, in two variables (Hoffmann et al. 2022, eq. 2)
    constant    y = c                                     baseline
    linear      y = a + b log x                           baseline

Everything is fitted to many resampled series at once, so that every number has an interval (`resampling.py`).

Shapes: R series (the data, or resamples of it), N points, K variables of a point (1 or 2), T = 1 + K terms of a sum,
P parameters, S starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
EXPONENTS = 1e-3, 5.0
"""Bounds of the exponents of laws with an offset."""
SMALLEST_TERM, LARGEST_TERM = -20.0, 8.0
"""Bounds of the logarithm of every term at the geometric mean of the points, relative to the smallest y."""
STARTS = (0.1, 0.4, 1.2)
"""Exponents from which a fit begins."""
TOLERANCE, EXACT = 1e-9, 1e-24
"""Relative gain of a step, and sum of squared residuals, at which a series is settled."""
NEGLIGIBLE = 1e-6
"""An offset below is the lower bound, which stands for 0."""
MOST_STEPS, LONGEST_STEP, LARGEST_DAMPING, SMALLEST_CURVATURE = 300, 3.0, 1e10, 1e-12


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def resampled(self) -> bool:
        """Whether there is an interval: where nothing varied, its ends are the number itself."""
        return self.low < self.high

    def covers(self, number: float) -> bool:
        """Whether `number` lies in the interval."""
        return self.low <= number <= self.high


class Law(ABC):
    """A curve with parameters."""

    name: str
    formula: str
    variables: int = 1
    points: int
    """The fewest points that determine the parameters."""

    @abstractmethod
    def fit(self, x_NK: np.ndarray, y_RN: np.ndarray, start_P: np.ndarray | None = None) -> np.ndarray:
        """Parameters of each series [R, P]; `start_P` is near them if it is known."""

    @abstractmethod
    def predict(self, theta_RP: np.ndarray, x_NK: np.ndarray) -> np.ndarray:
        """y at the points, [R, N]."""

    @abstractmethod
    def constants(self, theta_RP: np.ndarray) -> dict[str, np.ndarray]:
        """{name in the formula: values [R]}."""


class LinearLaw(Law):
    """A law that is linear in its parameters: of y or log y, with or without a slope over log x."""

    def __init__(self, name: str, formula: str, logarithmic: bool, slope: bool) -> None:
        self.name, self.formula, self.logarithmic, self.slope = name, formula, logarithmic, slope
        self.points = 1 + slope

    def _design(self, x_NK: np.ndarray) -> np.ndarray:
        columns = [np.ones(len(x_NK)), -np.log(x_NK[:, 0])]
        return np.stack(columns[: 1 + self.slope], axis=1)

    def fit(self, x_NK: np.ndarray, y_RN: np.ndarray, start_P: np.ndarray | None = None) -> np.ndarray:
        target_RN = np.log(y_RN) if self.logarithmic else y_RN
        return target_RN @ np.linalg.pinv(self._design(x_NK)).T

    def predict(self, theta_RP: np.ndarray, x_NK: np.ndarray) -> np.ndarray:
        y_RN = theta_RP @ self._design(x_NK).T
        return np.exp(y_RN) if self.logarithmic else y_RN

    def constants(self, theta_RP: np.ndarray) -> dict[str, np.ndarray]:
        if not self.slope:
            return {"c": np.exp(theta_RP[:, 0]) if self.logarithmic else theta_RP[:, 0]}
        if not self.logarithmic:
            return {"a": theta_RP[:, 0], "b": -theta_RP[:, 1]}
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # alpha 0: there is no x0
            return {"alpha": theta_RP[:, 1], "x0": np.exp(theta_RP[:, 0] / theta_RP[:, 1])}


class OffsetLaw(Law):
    """An irreducible part and one falling power of each variable.

    theta: log E, then for each variable the logarithm of its term at x = 1 and its exponent.
    """

    def __init__(self, name: str, formula: str, names: tuple[tuple[str, str], ...]) -> None:
        self.name, self.formula, self.names = name, formula, names
        self.variables = len(names)
        self.points = 1 + 2 * len(names)

    def fit(self, x_NK: np.ndarray, y_RN: np.ndarray, start_P: np.ndarray | None = None) -> np.ndarray:
        centre_K = np.log(x_NK).mean(axis=0)
        u_NK, log_RN = np.log(x_NK) - centre_K, np.log(y_RN)
        if start_P is None:
            starts_SP = self._starts(float(log_RN.min()))
        else:
            starts_SP = start_P[None].copy()
            starts_SP[:, 1::2] -= starts_SP[:, 2::2] * centre_K
        series, starts = len(log_RN), len(starts_SP)
        tried, cost = self._descend(u_NK, np.tile(log_RN, (starts, 1)), np.repeat(starts_SP, series, axis=0))
        best_R = cost.reshape(starts, series).argmin(axis=0)
        theta_RP = tried.reshape(starts, series, -1)[best_R, np.arange(series)]
        theta_RP[:, 1::2] += theta_RP[:, 2::2] * centre_K
        return theta_RP

    def _starts(self, floor: float) -> np.ndarray:
        """A grid over the exponents, with most of the smallest y left over, half of it and little of it."""
        return np.array(
            [
                [floor + np.log(share), *(v for alpha in alphas for v in (floor, alpha))]
                for share in (0.9, 0.5, 0.01)
                for alphas in product(STARTS, repeat=self.variables)
            ]
        )

    def _descend(self, u_NK: np.ndarray, log_RN: np.ndarray, theta_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levenberg-Marquardt inside the bounds, for all series at once; returns parameters and squared residuals.

        scipy's `least_squares` fits one series at a time: 2,000 resamples of every law would take it minutes.
        """
        low_P, high_P = self._bounds(log_RN)
        theta_RP = np.clip(theta_RP, low_P, high_P)
        terms_RNT = self._terms(theta_RP, u_NK)
        residual_RN = np.log(terms_RNT.sum(axis=2)) - log_RN
        cost_R, damping_R = (residual_RN**2).sum(axis=1), np.full(len(theta_RP), 1e-3)
        for _ in range(MOST_STEPS):
            jacobian_RNP = self._jacobian(terms_RNT, u_NK)
            gradient_RP = np.einsum("rnp,rn->rp", jacobian_RNP, residual_RN)
            held_RP = ((theta_RP <= low_P) & (gradient_RP > 0)) | ((theta_RP >= high_P) & (gradient_RP < 0))
            jacobian_RNP = np.where(held_RP[:, None], 0.0, jacobian_RNP)
            gram_RPP = np.einsum("rnp,rnq->rpq", jacobian_RNP, jacobian_RNP)
            diagonal_RP = np.einsum("rpp->rp", gram_RPP)  # a view: what is added here is added to the matrices
            diagonal_RP += damping_R[:, None] * (diagonal_RP + SMALLEST_CURVATURE) + held_RP
            step_RP = np.linalg.solve(gram_RPP, np.where(held_RP, 0.0, -gradient_RP)[..., None])[..., 0]
            tried_RP = np.clip(theta_RP + np.clip(step_RP, -LONGEST_STEP, LONGEST_STEP), low_P, high_P)
            tried_RNT = self._terms(tried_RP, u_NK)
            tried_RN = np.log(tried_RNT.sum(axis=2)) - log_RN
            tried_R = (tried_RN**2).sum(axis=1)
            better_R = tried_R < cost_R
            gain_R = np.where(better_R, cost_R - tried_R, 0.0)
            theta_RP = np.where(better_R[:, None], tried_RP, theta_RP)
            terms_RNT = np.where(better_R[:, None, None], tried_RNT, terms_RNT)
            residual_RN = np.where(better_R[:, None], tried_RN, residual_RN)
            settled_R = (gain_R <= TOLERANCE * cost_R) & (better_R | (damping_R > LARGEST_DAMPING))
            cost_R = np.where(better_R, tried_R, cost_R)
            damping_R = np.where(better_R, damping_R / 5, damping_R * 5)
            if (settled_R | (cost_R < EXACT)).all():
                break
        return theta_RP, cost_R

    def _bounds(self, log_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, ceiling = float(log_RN.min()), float(log_RN.max())
        low = np.array([floor + SMALLEST_TERM, *(floor + SMALLEST_TERM, EXPONENTS[0]) * self.variables])
        high = np.array([ceiling, *(ceiling + LARGEST_TERM, EXPONENTS[1]) * self.variables])
        return low, high

    def _terms(self, theta_RP: np.ndarray, u_NK: np.ndarray) -> np.ndarray:
        """The terms of the sum, [R, N, 1 + K], at logarithms u of the variables."""
        powers_RNK = theta_RP[:, None, 1::2] - theta_RP[:, None, 2::2] * u_NK
        offset_RN1 = np.broadcast_to(theta_RP[:, None, :1], (*powers_RNK.shape[:2], 1))
        return np.exp(np.concatenate([offset_RN1, powers_RNK], axis=2))

    def _jacobian(self, terms_RNT: np.ndarray, u_NK: np.ndarray) -> np.ndarray:
        """Derivatives of log y, [R, N, P]."""
        shares_RNT = terms_RNT / terms_RNT.sum(axis=2, keepdims=True)
        jacobian_RNP = np.empty((*terms_RNT.shape[:2], 1 + 2 * self.variables))
        jacobian_RNP[..., 0], jacobian_RNP[..., 1::2] = shares_RNT[..., 0], shares_RNT[..., 1:]
        jacobian_RNP[..., 2::2] = -u_NK * shares_RNT[..., 1:]
        return jacobian_RNP

    def predict(self, theta_RP: np.ndarray, x_NK: np.ndarray) -> np.ndarray:
        return self._terms(theta_RP, np.log(x_NK)).sum(axis=2)

    def constants(self, theta_RP: np.ndarray) -> dict[str, np.ndarray]:
        offset_R = np.exp(theta_RP[:, 0])
        found = {"E": np.where(offset_R < NEGLIGIBLE, 0.0, offset_R)}
        for number, (factor, exponent) in enumerate(self.names):
            found[factor] = np.exp(theta_RP[:, 1 + 2 * number])
            found[exponent] = theta_RP[:, 2 + 2 * number]
        return found


CONSTANT = LinearLaw("constant", "y = c", logarithmic=True, slope=False)
LINEAR = LinearLaw("linear", "y = a + b log x", logarithmic=False, slope=True)
POWER = LinearLaw("power", "y = (x0 / x)^alpha", logarithmic=True, slope=True)
OFFSET = OffsetLaw("offset", "y = E + A x^-alpha", (("A", "alpha"),))
JOINT = OffsetLaw("joint", "y = E + A N^-alpha + B D^-beta", (("A", "alpha"), ("B", "beta")))
BASELINES = (CONSTANT, LINEAR)
LAWS = (POWER, OFFSET)
"""The laws in one variable."""


def power_law(x: np.ndarray | float, alpha: float, x0: float) -> np.ndarray:
    """(x0 / x)^alpha, in logarithms, for an x0 as small as 1e-74."""
    return np.exp(alpha * (np.log(x0) - np.log(np.asarray(x, dtype=float))))


@dataclass(frozen=True)
class Fit:
    """A law fitted to the data, and to resamples of it."""

    law: Law
    theta_1P: np.ndarray
    resampled_RP: np.ndarray

    def constants(self) -> dict[str, Estimate]:
        """The law's constants by their names in its formula."""
        values, resampled = self.law.constants(self.theta_1P), self.law.constants(self.resampled_RP)
        return {name: interval(float(values[name][0]), resampled[name]) for name in values}

    def predict(self, x: np.ndarray | float) -> Estimate:
        """y at one point, K numbers."""
        at_1K = np.atleast_1d(np.asarray(x, dtype=float))[None]
        values = self.law.predict(self.resampled_RP, at_1K)[:, 0]
        return interval(float(self.law.predict(self.theta_1P, at_1K)[0, 0]), values)

    def flat(self) -> list[str]:
        """Exponents whose interval has 0 in it, or reaches the bound that stands for it: no scaling was found."""
        found: Mapping[str, Estimate] = self.constants()
        smallest = 2 * EXPONENTS[0] if isinstance(self.law, OffsetLaw) else 0.0
        return [name for name in ("alpha", "beta") if name in found and found[name].low <= smallest <= found[name].high]


def interval(value: float, resampled_R: np.ndarray) -> Estimate:
    """The percentile interval of resampled values."""
    tail = 100 * (1 - CONFIDENCE) / 2
    with np.errstate(invalid="ignore"):
        low, high = np.nanpercentile(resampled_R, [tail, 100 - tail], method="nearest")
    return Estimate(value, float(low), float(high))


def fit_law(law: Law, x: np.ndarray, y_N: np.ndarray, resampled_RN: np.ndarray) -> Fit:
    """Fits a law to points and to resamples of their values.

    Args:
        law: the law.
        x: [N] or [N, K], greater than 0.
        y_N: values, greater than 0.
        resampled_RN: the values again, resampled.

    Raises:
        ValueError: too few points, or numbers that have no logarithm.
    """
    x_NK = np.asarray(x, dtype=float).reshape(len(y_N), -1)
    if len(y_N) < law.points:
        raise ValueError(f"the {law.name} law needs {law.points} points, there are {len(y_N)}")
    if x_NK.shape[1] != law.variables:
        raise ValueError(f"the {law.name} law has {law.variables} variables, the points have {x_NK.shape[1]}")
    if min(x_NK.min(), y_N.min(), resampled_RN.min()) <= 0:
        raise ValueError(f"the {law.name} law: values must be greater than 0")
    theta_1P = law.fit(x_NK, y_N[None])
    return Fit(law, theta_1P, law.fit(x_NK, resampled_RN, theta_1P[0]))
