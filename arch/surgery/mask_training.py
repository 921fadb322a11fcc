"""The learned criterion: gates trained to the target's sizes (docs/methods/tiny_lm.md: learned masks).

    L_LM + sum over constraints of  lambda1 (t_hat - t) + lambda2 (t_hat - t)^2      minimised over the gates,
    t_hat = mean E[z != 0],   t from 1 to k/K over the first half of the steps       maximised over the lambdas

The weights are frozen, so a step costs a forward pass and a backward pass through activations only. Units are then
ranked by E[z != 0] and the exact k are taken; the gates are thrown away, kept units keep their donor weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm

from ..pangu_pi import PanguPiForCausalLM
from .groups import Kind, Scores, UnitSet, unit_sets
from .masks import gate_family, gated
from .measure import gradients_of_weights, next_token_loss
from .options import MaskOptions

EDGE = 1e-6  # noise stays this far from 0 and 1


@dataclass(frozen=True)
class MaskTraining:
    """What training the gates gave."""

    scores: Scores
    """By kind, [sets, units]: the trained numbers, which rank units as E[z != 0] does."""
    targets: dict[Kind, float]
    """k / K of every gated kind."""
    reached: dict[Kind, float]
    """The mean of E[z != 0] at the end."""
    losses: list[float] = field(default_factory=list)
    """The gated model's loss at every step, in nats."""

    @property
    def largest_miss(self) -> float:
        """The largest |t_hat - t|."""
        return max((abs(self.reached[kind] - target) for kind, target in self.targets.items()), default=0.0)


def train_masks(
    model: PanguPiForCausalLM,
    rows_NS: torch.Tensor,
    sizes: Mapping[Kind, int],
    options: MaskOptions,
    seed: int = 0,
    progress: bool = True,
) -> MaskTraining:
    """Train gates on every kind of which units are to go; `model` is left as it was, to the bit.

    Args:
        model: the layer-selected donor.
        rows_NS: calibration rows, gone through in order and from the beginning again.
        sizes: k, units to keep in every set, by kind.
        options: relaxation, steps, rates.
        seed: of the gates' noise.
        progress: show a bar.
    """
    sets = unit_sets(model)
    gates = _TrainedGates(sets, sizes, options, model.device)
    losses: list[float] = []
    if gates.targets:
        values: dict[Kind, torch.Tensor] = dict(gates.logits)
        generator = torch.Generator().manual_seed(seed)
        steps = tqdm(range(options.steps), "masks", disable=not progress, leave=False)
        with gradients_of_weights(model, False), gated(model, values), steps:
            for step in steps:
                values |= gates.sample(generator, step / options.steps, model.dtype)
                places = torch.arange(step * options.batch, (step + 1) * options.batch) % len(rows_NS)
                ids_BS = rows_NS[places].to(model.device)
                hidden_BSD = model.model(input_ids=ids_BS, use_cache=False).last_hidden_state
                loss = next_token_loss(model, hidden_BSD, ids_BS)
                gates.step(loss, ramp=min(1.0, 2 * step / options.steps))
                losses.append(loss.item())
                steps.set_postfix_str(f"loss {losses[-1]:.3f}")
    return MaskTraining(gates.scores(sets), gates.targets, gates.reached(), losses)


class _TrainedGates:
    """The trained number of every unit that may go, the multipliers, and the optimizers of both."""

    def __init__(
        self,
        sets: Mapping[Kind, list[UnitSet]],
        sizes: Mapping[Kind, int],
        options: MaskOptions,
        device: torch.device,
    ) -> None:
        cut = {kind: units for kind, units in sets.items() if sizes[kind] < units[0].units}
        self.targets: dict[Kind, float] = {kind: sizes[kind] / units[0].units for kind, units in cut.items()}
        self.family = gate_family(options.relaxation)
        self.per_layer = options.constraint == "layer"
        start = self.family.start
        self.logits: dict[Kind, nn.Parameter] = {
            kind: nn.Parameter(torch.full((len(units), units[0].units), start, device=device))
            for kind, units in cut.items()
        }
        self.multipliers: dict[Kind, nn.Parameter] = {
            kind: nn.Parameter(torch.zeros(2, len(units) if self.per_layer else 1, device=device))
            for kind, units in cut.items()
        }
        if cut:
            self.descent = torch.optim.Adam(self.logits.values(), lr=options.learning_rate)
            self.ascent = torch.optim.Adam(self.multipliers.values(), lr=options.learning_rate, maximize=True)

    def sample(self, generator: torch.Generator, progress: float, dtype: torch.dtype) -> dict[Kind, torch.Tensor]:
        """One draw of every gate, by kind, [sets, units]."""
        gates: dict[Kind, torch.Tensor] = {}
        for kind, logits in self.logits.items():
            uniform = torch.rand(logits.shape, generator=generator).clamp(EDGE, 1 - EDGE).to(logits.device)
            gates[kind] = self.family.sample(logits, uniform, progress).to(dtype)
        return gates

    def step(self, loss: torch.Tensor, ramp: float) -> None:
        """Descend on the gates and ascend on the multipliers; `ramp` is the share of the way from 1 to k/K."""
        objective = loss.float()
        for kind, logits in self.logits.items():
            kept = self.family.keep_probability(logits)
            reached = kept.mean(1) if self.per_layer else kept.mean()[None]
            miss = reached - (1 - ramp * (1 - self.targets[kind]))
            linear, square = self.multipliers[kind]
            objective = objective + (linear * miss + square * miss.square()).sum()
        self.descent.zero_grad()
        self.ascent.zero_grad()
        objective.backward()
        self.descent.step()
        self.ascent.step()

    def reached(self) -> dict[Kind, float]:
        """t_hat of every gated kind."""
        return {
            kind: float(self.family.keep_probability(logits.detach()).mean()) for kind, logits in self.logits.items()
        }

    def scores(self, sets: Mapping[Kind, list[UnitSet]]) -> Scores:
        """The trained numbers; zeros, which keep the order, for kinds that lose nothing."""
        whole: Scores = {kind: torch.zeros(len(units), units[0].units) for kind, units in sets.items()}
        return whole | {kind: logits.detach().float().cpu() for kind, logits in self.logits.items()}


__all__ = ["MaskTraining", "train_masks"]
