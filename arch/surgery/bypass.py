"""Layer bypass: what the loss becomes when layers are stepped over (docs/methods/tiny_lm.md: layers).

A bypassed layer passes the residual stream on unchanged. What comes before it is computed once for all positions, so a
curve costs half of what a forward pass for every position would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

from ..pangu_pi import PanguPiForCausalLM
from .errors import SurgeryError
from .measure import batches, layer_inputs, next_token_loss, only_layers

LAZY_CANDIDATES = 4


@dataclass(frozen=True)
class BypassCurve:
    """Losses without `span` consecutive layers, for every position."""

    span: int
    """How many consecutive layers are bypassed."""
    baseline: float
    """The loss with all layers, in nats."""
    losses: list[float]
    """`losses[i]`: without layers i .. i + span - 1."""

    def contrast(self, ends: int) -> dict[str, float]:
        """Mean harm (loss minus baseline) at the ends and between them.

        Args:
            ends: how many positions count as the beginning, and as many as the end.

        Returns:
            `first`, `last`, `middle` (in nats; NaN where no position is left) and `ratio` of ends to middle.
        """
        harms = torch.tensor(self.losses, dtype=torch.float64) - self.baseline
        first, last, middle = harms[:ends], harms[-ends:], harms[ends:-ends]
        both = torch.cat((first, last)).mean()
        means = {"first": first.mean(), "last": last.mean(), "middle": middle.mean(), "ratio": both / middle.mean()}
        return {name: float(value) for name, value in means.items()}


def bypass_curve(
    model: PanguPiForCausalLM, rows_NS: torch.Tensor, span: int = 1, batch: int = 4, progress: bool = True
) -> BypassCurve:
    """The loss without every run of `span` consecutive layers.

    Raises:
        SurgeryError: the model has fewer layers than `span`.
    """
    depth = len(model.model.layers)
    if not 1 <= span <= depth:
        raise SurgeryError(f"{span} consecutive layers cannot be bypassed in a model of {depth}")
    runs = [tuple(range(start, start + span)) for start in range(depth - span + 1)]
    with _bar(len(runs) * len(rows_NS), f"bypass {span}", progress) as bar:
        baseline, losses = _losses_without(model, rows_NS, runs, batch, bar)
    return BypassCurve(span, baseline, losses)


def least_harmful(
    model: PanguPiForCausalLM,
    rows_NS: torch.Tensor,
    remove: int,
    protect: int,
    method: Literal["greedy", "lazy_greedy", "one_pass"] = "greedy",
    batch: int = 4,
    progress: bool = True,
) -> tuple[list[int], list[tuple[int, float]]]:
    """Choose the layers whose removal harms least.

    Args:
        model: the donor.
        rows_NS: what harm is measured on.
        remove: how many layers go.
        protect: the first and the last so many layers stay.
        method: greedy measures every layer again after every removal, since single harms ignore that layers depend on
            each other; lazy_greedy takes the earlier losses for lower bounds (with a layer fewer, leaving out another
            costs more) and measures again only what could still be the least; one_pass takes the smallest single harms
            at once.
        batch: rows per forward pass.
        progress: show a bar.

    Returns:
        The kept layers, ascending, and the removed ones in order, each with the loss measured without it (and, if
        greedy, without those removed before).
    """
    kept = list(range(len(model.model.layers)))
    removed: list[tuple[int, float]] = []
    stale = set(kept[protect : len(kept) - protect])
    loss_without = dict.fromkeys(stale, -math.inf)
    at_once = LAZY_CANDIDATES if method == "lazy_greedy" else len(kept)
    with tqdm(total=remove, desc="layers", unit="layer", disable=not progress, leave=False) as bar:
        for _ in range(remove):
            while (least := min(loss_without, key=lambda index: (loss_without[index], index))) in stale:
                # All at first, for bounds to begin with.
                measured = sorted(stale, key=lambda index: (loss_without[index], index))
                measured = sorted(measured[: at_once if removed else len(kept)])
                loss_without |= zip(measured, _without_each(model, rows_NS, kept, measured, batch), strict=True)
                stale -= set(measured)
            removed.append((least, loss_without.pop(least)))
            kept.remove(least)
            stale = set() if method == "one_pass" else set(loss_without)
            bar.update()
    return kept, removed


def _without_each(
    model: PanguPiForCausalLM, rows_NS: torch.Tensor, kept: list[int], candidates: list[int], batch: int
) -> list[float]:
    """The loss of the layers `kept` without each of `candidates`."""
    with only_layers(model, [model.model.layers[index] for index in kept]):
        runs = [(kept.index(index),) for index in candidates]
        with _bar(len(runs) * len(rows_NS), "harm", progress=False) as bar:
            return _losses_without(model, rows_NS, runs, batch, bar)[1]


@torch.no_grad()
def _losses_without(
    model: PanguPiForCausalLM, rows_NS: torch.Tensor, runs: Sequence[tuple[int, ...]], batch: int, bar: tqdm
) -> tuple[float, list[float]]:
    """The loss of the whole model, and without every run of consecutive layers."""
    layers, totals = list(model.model.layers), torch.zeros(1 + len(runs), dtype=torch.float64)
    for ids_BS in batches(rows_NS, batch, model):
        states = layer_inputs(model, ids_BS)
        totals[0] += next_token_loss(model, model.model.norm(states[-1]), ids_BS).cpu() * len(ids_BS)
        for number, run in enumerate(runs, start=1):
            with only_layers(model, layers[run[-1] + 1 :]):
                hidden_BSD = model.model(inputs_embeds=states[run[0]], use_cache=False).last_hidden_state
            totals[number] += next_token_loss(model, hidden_BSD, ids_BS).cpu() * len(ids_BS)
            bar.update(len(ids_BS))
    baseline, *losses = (totals / len(rows_NS)).tolist()
    return baseline, losses


def _bar(total: int, name: str, progress: bool) -> tqdm:
    """A bar that counts rows, with the time that is left."""
    return tqdm(total=total, desc=name, unit="row", disable=not progress, leave=False)


__all__ = ["BypassCurve", "bypass_curve", "least_harmful"]
