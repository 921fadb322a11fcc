"""What can be cut out of a model: units, and which entries of which parameters belong to one.

A unit leaves the model as a whole, so everything coupled to it is listed once, here; scoring, masking, zeroing and
slicing read the same table (docs/methods/tiny_lm.md: units).

    kind       set                     a unit owns
    heads      one per layer           a key/value head with all query heads that share it: rows of W_q, W_k, W_v,
                                       columns of W_o
    ffn        one per layer           a neuron: row of gate and up, column of down, its series scales and biases
    shortcut   one per layer           a bottleneck unit: a row of W_down and of W_up (both are stored [K, D])
    hidden     one for the network     a residual channel: of the embedding, the head, every norm, and every matrix
                                       that reads or writes the residual stream

Head size and rotary frequencies are never cut, nor norms of queries and keys, which all heads of a layer share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ..pangu_pi import PanguPiForCausalLM

Kind = Literal["heads", "ffn", "shortcut", "hidden"]
HEAD_NORMS = ("q_norm", "k_norm")  # shared by all heads, over the channels of one
KINDS: tuple[Kind, ...] = ("heads", "ffn", "shortcut", "hidden")  # the order in which they are cut
# Which units were chosen: by kind, ascending indices of every set, in the order of the layers (one set for `hidden`).
Selection = Mapping[Kind, list[torch.Tensor]]
# How important units are: by kind, [sets, units].
Scores = dict[Kind, torch.Tensor]


@dataclass(frozen=True)
class Member:
    """One parameter's share in the units of a set."""

    name: str
    """Name of the parameter in the model."""
    dim: int
    """The dimension along which units lie."""
    block: int = 1
    """Consecutive entries that one unit owns."""

    @property
    def matrix_type(self) -> str:
        """The same for the same matrix of every layer: `self_attn.q_proj.weight`."""
        return ".".join(part for part in self.name.split(".") if part not in ("model", "layers") and not part.isdigit())

    def by_unit(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` (shaped like the parameter) as [units, entries of a unit]."""
        rows = tensor.movedim(self.dim, 0)
        return rows.reshape(rows.shape[0] // self.block, -1)

    def entries(self, units: torch.Tensor) -> torch.Tensor:
        """The indices along `dim` that these units own."""
        return (units[:, None] * self.block + torch.arange(self.block, device=units.device)).flatten()


@dataclass(frozen=True)
class UnitSet:
    """Units that compete with each other for a place in the smaller model."""

    kind: Kind
    """What the units are."""
    layer: int | None
    """The layer that they belong to; None for the whole network."""
    units: int
    """How many there are."""
    members: tuple[Member, ...]
    """Everything that a unit owns."""


def unit_sets(model: PanguPiForCausalLM) -> dict[Kind, list[UnitSet]]:
    """Every set of units in `model`, by kind; kinds that it does not have (no shortcut) are absent.

    Sizes are read from the parameters, so a model that is half cut is described as it is.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    found: dict[Kind, list[UnitSet]] = {}
    for index, layer in enumerate(model.model.layers):
        prefix, size = f"model.layers.{index}", layer.self_attn.head_dim
        group = size * layer.self_attn.num_key_value_groups
        layouts: dict[Kind, list[tuple[str, int, int]]] = {
            "heads": [
                ("self_attn.q_proj.weight", 0, group),
                ("self_attn.q_proj.bias", 0, group),
                ("self_attn.k_proj.weight", 0, size),
                ("self_attn.k_proj.bias", 0, size),
                ("self_attn.v_proj.weight", 0, size),
                ("self_attn.v_proj.bias", 0, size),
                ("self_attn.o_proj.weight", 1, group),
            ],
            "ffn": [
                ("mlp.gate_proj.weight", 0, 1),
                ("mlp.gate_proj.bias", 0, 1),
                ("mlp.up_proj.weight", 0, 1),
                ("mlp.up_proj.bias", 0, 1),
                ("mlp.act_fn.scale", 1, 1),
                ("mlp.act_fn.bias", 1, 1),
                ("mlp.down_proj.weight", 1, 1),
            ],
            "shortcut": [("shortcut.down_weight", 0, 1), ("shortcut.up_weight", 0, 1)],
        }
        for kind, layout in layouts.items():
            members = tuple(
                Member(f"{prefix}.{name}", dim, block)
                for name, dim, block in layout
                # A series scale of scope "scalar" is [M, 1]: shared by all neurons, owned by none.
                if (shape := shapes.get(f"{prefix}.{name}")) and not ("act_fn" in name and shape[1] == 1)
            )
            if members:
                first = members[0]
                units = shapes[first.name][first.dim] // first.block
                found.setdefault(kind, []).append(UnitSet(kind, index, units, members))
    found["hidden"] = [UnitSet("hidden", None, shapes["model.norm.weight"][0], tuple(_residual(shapes)))]
    return {kind: found[kind] for kind in KINDS if kind in found}


def _residual(names: Iterable[str]) -> Iterator[Member]:
    """Everything with an entry per residual channel; a tied head is not listed beside the embedding."""
    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    for name in names:
        module, leaf = name.split(".")[-2:]
        if ("norm" in module and module not in HEAD_NORMS) or module in ("o_proj", "down_proj"):
            yield Member(name, 0)
        elif (module in readers and leaf == "weight") or module in ("embed_tokens", "lm_head", "shortcut"):
            yield Member(name, 1)


__all__ = ["KINDS", "Kind", "Member", "Scores", "Selection", "UnitSet", "unit_sets"]
