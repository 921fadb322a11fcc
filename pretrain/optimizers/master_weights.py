"""fp32 master weights without ZeRO: the model computes in bf16, and everything that is summed is summed in fp32.

    backward   each bf16 gradient is added to its fp32 sum as soon as autograd has it, and freed
    boundary   DeepSpeed averages the fp32 sums over the ranks
    step       the optimizer updates fp32 masters from them; the weights are the masters, rounded

DeepSpeed has an optimizer of its own for this (`FP16_UnfusedOptimizer`), which accumulates in bf16, decays the weights
once before the first step and asks the device once per tensor whether a gradient is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.optimizers.optimizer import ParameterGroup

MASTERS = "masters"
"""Key of the master weights in the state: tensors in the order of the groups."""


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 masters of bf16 weights; to DeepSpeed and the schedule it looks like the one inside."""

    def __init__(
        self, groups: Sequence[ParameterGroup], build: Callable[[list[ParameterGroup]], torch.optim.Optimizer]
    ) -> None:
        """Makes masters and sums of gradients on the weights' device.

        Args:
            groups: the weights that are trained, already in bf16.
            build: makes the optimizer of groups that hold the masters in place of the weights.
        """
        # Not torch's own __init__: groups and state are those of the optimizer inside, which is what is saved.
        self.weights = [parameter for group in groups for parameter in group.parameters]
        self.masters = [nn.Parameter(weight.detach().float()) for weight in self.weights]
        self.sums = [torch.zeros_like(master) for master in self.masters]
        remaining = iter(self.masters)
        self.optimizer = build([group.holding([next(remaining) for _ in group.parameters]) for group in groups])
        self._hooks = [
            weight.register_post_accumulate_grad_hook(_adder(total))
            for weight, total in zip(self.weights, self.sums, strict=True)
        ]
        self._attach()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the optimizer inside."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the optimizer inside, by master."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the optimizer inside."""
        return self.optimizer.defaults

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """What DeepSpeed averages over the ranks in place of the weights' own gradients; no experts."""
        return self.sums, {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates masters that have a gradient, and the weights from all of them; begins new sums."""
        self.optimizer.step(closure)
        self.round_to_weights()
        torch._foreach_zero_(self.sums)
        self._attach()

    @torch.no_grad()
    def round_to_weights(self) -> None:
        """The weights that the model computes with, from the masters."""
        torch._foreach_copy_([weight.data for weight in self.weights], self.masters)

    def _attach(self) -> None:
        for master, total in zip(self.masters, self.sums, strict=True):
            master.grad = total

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the sums begin anew with every step."""

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer inside, and the masters."""
        return self.optimizer.state_dict() | {MASTERS: [master.detach() for master in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` returned."""
        masters = state_dict[MASTERS]
        self.optimizer.load_state_dict({key: value for key, value in state_dict.items() if key != MASTERS})
        for master, saved in zip(self.masters, masters, strict=True):
            master.copy_(saved)

    def destroy(self) -> None:
        """Takes the hooks off the weights; DeepSpeed calls it with its engine's end."""
        for hook in self._hooks:
            hook.remove()


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        total.add_(weight.grad)
        weight.grad = None

    return add


def round_model(model: nn.Module, device: torch.device) -> None:
    """Moves a model to its device, parameters in bf16; buffers keep their type, as under ZeRO (rotary frequencies)."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(device, torch.bfloat16)
    model.to(device)
