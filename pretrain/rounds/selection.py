"""Which units the next round sees: drawn without replacement, p ~ exp(loss) (docs/methods/tiny_lm.md: rounds).

    p_j = exp(l_j) / sum_i exp(l_i)        sequential draws without replacement, N0 of N
    key_j = l_j + G_j,  G_j ~ Gumbel(0, 1)      the N0 largest keys: the same distribution, in one pass

The keys live in log space, so no loss overflows, and there is no limit on N. What it costs: one random number per unit
and a sort. It is plain arithmetic on the ledger in float64, so it cannot depend on how many ranks made the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.permutation import derive_key
from pretrain.errors import ConfigurationError


@dataclass(frozen=True)
class Choice:
    """The chosen units and how different they are from all."""

    chosen_K: np.ndarray
    """Places of the chosen units in the ledger, ascending: int64 [K]."""
    excluded: int
    """Units that could not be chosen because their loss is not finite."""
    mean: float
    """Mean loss of all units with a finite loss, each counted once."""
    std: float
    """Standard deviation of these losses."""
    chosen_mean: float
    """Mean loss of the chosen ones."""

    @property
    def shift(self) -> float:
        """Selectivity: chosen mean minus overall mean, in standard deviations."""
        return (self.chosen_mean - self.mean) / self.std if self.std else 0.0


def log_probabilities(losses_N: np.ndarray) -> np.ndarray:
    """log softmax of the losses: float64 [N]; exp of it sums to 1, and a constant added to all losses drops out."""
    shifted_N = losses_N.astype(np.float64) - losses_N.max()
    return shifted_N - np.log(np.exp(shifted_N).sum())


def gumbel_top_k(log_weights_N: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draws `count` of N places without replacement, each draw in proportion to exp(log_weights) of those left.

    Returns:
        int64 [count], ascending, no place twice.
    """
    keys_N = log_weights_N + generator.gumbel(size=log_weights_N.size)
    return np.sort(np.argsort(-keys_N, kind="stable")[:count])


def gumbel_seed(seed: int, round: int) -> int:
    """Seed of the draw for `round` (2 or more) of the run with `seed`; logged with the selection."""
    return derive_key(seed, round)


def choose(losses_N: np.ndarray, count: int, *, seed: int, parts: int = 1, uniform: bool = False) -> Choice:
    """Chooses `count` of the N units of a ledger.

    Args:
        losses_N: mean loss of every unit, in the sequence in which round 1 served them; NaN where it is not known.
        count: how many to choose.
        seed: seed of the Gumbel noise.
        parts: softmax and draw inside each of so many sequential parts, which get equal shares; 1 is global.
        uniform: give every unit the same probability (the control); the noise is the same.

    Raises:
        ConfigurationError: fewer than `count` units have a finite loss.
    """
    eligible_E = np.flatnonzero(np.isfinite(losses_N))
    if eligible_E.size < count:
        raise ConfigurationError(
            f"rounds.keep asks for {count} of {losses_N.size} units, but only {eligible_E.size} have a finite loss; "
            "lower rounds.keep, or use rounds.loss_source frozen if the losses were not recorded from the start"
        )
    finite_E = losses_N[eligible_E].astype(np.float64)
    weights_E = np.zeros_like(finite_E) if uniform else finite_E
    generator = np.random.default_rng(seed)
    borders = np.arange(parts + 1) * eligible_E.size // parts
    shares = np.diff(borders * count // eligible_E.size)
    chosen = [
        first + gumbel_top_k(log_probabilities(weights_E[first:last]), share, generator)
        for first, last, share in zip(borders[:-1], borders[1:], shares, strict=True)
        if last > first
    ]
    places_K = np.concatenate(chosen)
    return Choice(
        chosen_K=eligible_E[places_K],
        excluded=int(losses_N.size - eligible_E.size),
        mean=float(finite_E.mean()),
        std=float(finite_E.std()),
        chosen_mean=float(finite_E[places_K].mean()),
    )
