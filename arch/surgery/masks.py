"""Gates on the units of a model: masks that leave the weights alone (docs/methods/tiny_lm.md: learned masks).

    z_hidden    on the embedding and on every write to the residual stream; norms divide by the kept count, as the
                sliced model's will
    z_heads     before W_o          z_ffn    before W_down          z_shortcut    before W_up

Two relaxations give a gate z in [0, 1] from a trained number per unit:

* `HardConcrete`:  s = sigmoid((log u - log(1-u) + log alpha) / beta),  u ~ U(0,1)
  z = clip(s (zeta - gamma) + gamma, 0, 1)  with beta = 2/3, gamma = -0.1, zeta = 1.1
  E[z != 0] = sigmoid(log alpha - beta log(-gamma / zeta))
* `GumbelSte`:  s = sigmoid((log u - log(1-u) + logit) / T),  T from 1.0 to 0.1
  z = 1 where s > 1/2 and else 0, with the gradient of s;  P[z = 1] = sigmoid(logit)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from ..pangu_pi import PanguPiForCausalLM
from .groups import Kind
from .options import Relaxation

Gates = Mapping[Kind, torch.Tensor]  # by kind, [sets, units], values in [0, 1]


class GateFamily(Protocol):
    """A relaxation of binary gates."""

    start: float
    """What the trained number of every unit starts at."""

    def sample(self, logits: torch.Tensor, uniform: torch.Tensor, progress: float) -> torch.Tensor:
        """Gates in [0, 1], of the same shape, from noise in (0, 1); `progress` is the share of training done."""

    def keep_probability(self, logits: torch.Tensor) -> torch.Tensor:
        """The probability that a gate is not zero."""


class HardConcrete:
    """The stretched and clipped concrete distribution."""

    BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

    def __init__(self, keep: float = 0.95) -> None:
        self.offset = self.BETA * math.log(-self.GAMMA / self.ZETA)
        self.start = math.log(keep / (1 - keep)) + self.offset

    def sample(self, logits: torch.Tensor, uniform: torch.Tensor, progress: float) -> torch.Tensor:
        s = torch.sigmoid((torch.logit(uniform) + logits) / self.BETA)
        return (s * (self.ZETA - self.GAMMA) + self.GAMMA).clamp(0, 1)

    def keep_probability(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(logits - self.offset)


class GumbelSte:
    """Binary gates with a straight-through gradient and a falling temperature."""

    HOT, COLD = 1.0, 0.1

    def __init__(self, start: float = 2.0) -> None:
        self.start = start

    def sample(self, logits: torch.Tensor, uniform: torch.Tensor, progress: float) -> torch.Tensor:
        temperature = self.HOT * (self.COLD / self.HOT) ** progress
        s = torch.sigmoid((torch.logit(uniform) + logits) / temperature)
        return (s > 0.5).to(s.dtype) + s - s.detach()

    def keep_probability(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(logits)


def gate_family(name: Relaxation) -> GateFamily:
    """The relaxation of this name."""
    return HardConcrete() if name == "hard_concrete" else GumbelSte()


@contextmanager
def gated(model: PanguPiForCausalLM, gates: dict[Kind, torch.Tensor]) -> Iterator[None]:
    """Inside, `model` computes with the gates that `gates` holds at that time; all gates at 1 change no bit.

    Args:
        model: stays as it is, its weights are not touched.
        gates: by kind, [sets, units]; a kind that is absent on entry is not gated.
    """
    hooks = []

    def multiply(module: nn.Module, gate: Callable[[], torch.Tensor], where: str = "output") -> None:
        """Multiply the module's output (the first, of several) or its input."""

        def on_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            return (output[0] * gate(), *output[1:]) if isinstance(output, tuple) else output * gate()

        def on_input(_module: nn.Module, inputs: Any) -> Any:
            return (inputs[0] * gate(), *inputs[1:])

        hooks.append(
            module.register_forward_hook(on_output) if where == "output" else module.register_forward_pre_hook(on_input)
        )

    if "hidden" in gates:
        for module in _residual_writers(model):
            multiply(module, lambda: gates["hidden"][0])
        for module in model.modules():
            if type(module) is type(model.model.norm):
                multiply(module, lambda: gates["hidden"][0].mean().sqrt())
    for index, layer in enumerate(model.model.layers):
        if "heads" in gates:
            width = layer.self_attn.head_dim * layer.self_attn.num_key_value_groups
            multiply(
                layer.self_attn.o_proj,
                lambda i=index, w=width: gates["heads"][i].repeat_interleave(w),  # type: ignore[misc]
                "input",
            )
        if "ffn" in gates:
            multiply(layer.mlp.down_proj, lambda i=index: gates["ffn"][i], "input")  # type: ignore[misc]
        if "shortcut" in gates:
            multiply(layer.shortcut.act_fn, lambda i=index: gates["shortcut"][i])  # type: ignore[misc]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _residual_writers(model: PanguPiForCausalLM) -> Iterator[nn.Module]:
    """Every module whose output enters the residual stream."""
    yield model.model.embed_tokens
    for layer in model.model.layers:
        yield from (layer.self_attn, layer.mlp)
        if layer.shortcut is not None:
            yield layer.shortcut


__all__ = ["GateFamily", "GumbelSte", "HardConcrete", "gate_family", "gated"]
