"""How important a unit is: criteria that look at weights, gradients or positions (docs/methods/tiny_lm.md: criteria).

    l1       sum of |w| over everything the unit owns
    l2       sqrt of the sum of w^2
    taylor   |sum of w * dL/dw| averaged over calibration batches, or the sum of |w * dL/dw|: the first-order change of
             the loss if the unit were zero
    first, uniform, random   by position, evenly spaced, by a seeded draw: what the others have to beat

A residual channel runs through every matrix of the network. Its score is summed per matrix type over the layers, each
type is divided by its mean, and the types are added, so that large matrices do not dominate. The trained criterion,
`learned`, is in mask_training.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from tqdm import tqdm

from ..pangu_pi import PanguPiForCausalLM
from .groups import Kind, Scores, Selection, UnitSet, unit_sets
from .layers import evenly
from .measure import batches, gradients_of_weights, next_token_loss
from .options import TaylorForm

# One parameter's entries [units, entries] -> its contribution to the score of each unit.
Reduce = Callable[[torch.Tensor], torch.Tensor]


def weight_scores(model: PanguPiForCausalLM, order: Literal[1, 2]) -> Scores:
    """L1 or L2 scores: by kind, [sets, units] in float32 on the CPU."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if order == 1:
        return _collect(model, weights, lambda entries: entries.abs().sum(1), lambda total: total)
    return _collect(model, weights, lambda entries: entries.square().sum(1), torch.sqrt)


def taylor_scores(
    model: PanguPiForCausalLM,
    rows_NS: torch.Tensor,
    form: TaylorForm = "group",
    batch: int = 4,
    progress: bool = True,
) -> Scores:
    """First-order scores, averaged over the batches of calibration rows; `model` is left as it was.

    Args:
        model: the layer-selected donor.
        rows_NS: calibration rows.
        form: `"group"` for |sum of w g| over a unit, `"element"` for the sum of |w g|.
        batch: rows per gradient; the absolute value is taken batch by batch.
        progress: show a bar.
    """
    parameters = dict(model.named_parameters())
    total: Scores = {}
    steps = -(-len(rows_NS) // batch)
    with gradients_of_weights(model, True):
        for ids_BS in tqdm(batches(rows_NS, batch, model), "taylor", steps, disable=not progress, leave=False):
            hidden_BSD = model.model(input_ids=ids_BS, use_cache=False).last_hidden_state
            gradients = torch.autograd.grad(next_token_loss(model, hidden_BSD, ids_BS), list(parameters.values()))
            products = {
                name: parameter.detach() * gradient
                for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            }
            if form == "group":
                scores = _collect(model, products, lambda entries: entries.sum(1), torch.abs)
            else:
                scores = _collect(model, products, lambda entries: entries.abs().sum(1), lambda sums: sums)
            for kind, values in scores.items():
                total[kind] = total.get(kind, 0) + values / steps
    return total


def position_scores(
    model: PanguPiForCausalLM, name: Literal["first", "uniform", "random"], sizes: Mapping[Kind, int], seed: int = 0
) -> Scores:
    """Scores that know nothing of the weights.

    Args:
        model: what is to be cut.
        name: the first units, evenly spaced ones, or random ones (others in every layer).
        sizes: units to keep in every set, by kind.
        seed: of the random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    scores: Scores = {}
    for kind, sets in unit_sets(model).items():
        units = sets[0].units
        if name == "random":
            scores[kind] = torch.rand(len(sets), units, generator=generator)
        elif name == "first":
            scores[kind] = -torch.arange(units, dtype=torch.float32).expand(len(sets), -1)
        else:
            chosen = torch.zeros(units)
            chosen[evenly(units, sizes[kind])] = 1.0
            scores[kind] = chosen.expand(len(sets), -1)
    return scores


def choose_units(scores: Scores, sizes: Mapping[Kind, int]) -> Selection:
    """The k highest-scoring units of every set, ascending; of equal scores the first.

    Args:
        scores: by kind, [sets, units].
        sizes: k, by kind.
    """
    return {
        kind: [row.argsort(descending=True, stable=True)[: sizes[kind]].sort().values for row in values]
        for kind, values in scores.items()
    }


def _collect(model: PanguPiForCausalLM, entries: Mapping[str, torch.Tensor], reduce: Reduce, finish: Reduce) -> Scores:
    """Reduce every member of every unit, and add members up; residual channels by matrix type."""
    scores: Scores = {}
    for kind, sets in unit_sets(model).items():
        rows = [_by_type(units, entries, reduce, finish) if kind == "hidden" else
                finish(_sum_of_members(units, entries, reduce)) for units in sets]  # fmt: skip
        scores[kind] = torch.stack(rows).float().cpu()
    return scores


def _sum_of_members(units: UnitSet, entries: Mapping[str, torch.Tensor], reduce: Reduce) -> torch.Tensor:
    """[units]: what all members contribute together."""
    return torch.stack([reduce(member.by_unit(entries[member.name])) for member in units.members]).sum(0)


def _by_type(units: UnitSet, entries: Mapping[str, torch.Tensor], reduce: Reduce, finish: Reduce) -> torch.Tensor:
    """[units]: finished per matrix, summed over layers, every matrix type brought to mean 1, and added."""
    types: dict[str, torch.Tensor] = {}
    for member in units.members:
        score = finish(reduce(member.by_unit(entries[member.name])))
        types[member.matrix_type] = types.get(member.matrix_type, 0) + score
    # A type that is all zero (the write side of a shortcut at identity) says nothing about channels.
    return torch.stack([score / score.mean() for score in types.values() if score.any()]).sum(0)


__all__ = ["choose_units", "position_scores", "taylor_scores", "weight_scores"]
