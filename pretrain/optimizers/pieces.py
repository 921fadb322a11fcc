"""What a rank's optimizer holds of every parameter: where its piece lies in the optimizer's vectors, at every stage.

stage 0      whole parameters (in bf16, their masters), on every rank
stage 1, 2   each group is one vector, cut into as many parts as there are ranks; a parameter may cross a cut
stage 3      every parameter is cut by itself; a vector holds one piece after the other
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor, nn

PREFIX = "model."
"""Of parameters in the engine's own names: its module is the task's loss, which holds the model."""


class OptimizedEngine(Protocol):
    """What is asked of the engine (`pretrain/engine.py`) here."""

    groups: Any
    """Parameter groups with `parameter_names` and `use_muon`."""

    @property
    def stage(self) -> int:
        """Of ZeRO."""

    optimizer: Any
    """Without ZeRO, what updates the groups."""
    wrapped: Any
    """DeepSpeed's engine, whose `optimizer` is ZeRO's."""
    world: Any
    """With this rank's number in `rank`."""


@dataclass(frozen=True)
class Piece:
    """The part of one parameter that this rank updates."""

    flat: Tensor
    """What the optimizer knows: a vector of many pieces or, without ZeRO, the parameter (in bf16, its master)."""
    begin: int
    """Of the piece in `flat`, in elements."""
    name: str
    shape: torch.Size
    """Of the whole parameter."""
    start: int
    """Of the piece in the whole parameter, in elements."""
    size: int
    muon: bool
    """Whether the parameter is one of Muon's matrices."""


def held_pieces(engine: OptimizedEngine) -> Iterator[Piece]:
    """What this rank updates, in the order of the optimizer's groups."""
    muon = {name for group in engine.groups if group.use_muon for name in group.parameter_names}
    if engine.stage == 0:
        for group, held in zip(engine.groups, engine.optimizer.param_groups, strict=True):
            for name, parameter in zip(group.parameter_names, held["params"], strict=True):
                yield Piece(parameter, 0, name, parameter.shape, 0, parameter.numel(), name in muon)
        return
    zero = engine.wrapped.optimizer
    if engine.stage == 3:
        for flat, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            begin = 0
            for parameter in parameters:
                share, whole = parameter.partition_numel(), parameter.ds_numel
                start = min(engine.world.rank * share, whole)
                size, name = min(share, whole - start), _name(zero, parameter)
                yield Piece(flat, begin, name, torch.Size(parameter.ds_shape), start, size, name in muon)
                begin += share
        return
    if isinstance(zero, BF16_Optimizer):
        partitions, groups = zero.fp32_groups_flat_partition, zero.bf16_groups
    else:
        partitions, groups = zero.single_partition_of_fp32_groups, zero.bit16_groups
    for flat, parameters in zip(partitions, groups, strict=True):
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is not None:
                place, start = mapping.get_hp_fragment_address(), mapping.lp_fragment_address.start
                name = _name(zero, parameter)
                yield Piece(flat, place.start, name, parameter.shape, start, place.numel, name in muon)


def _name(zero: Any, parameter: nn.Parameter) -> str:
    return zero.param_names[parameter].removeprefix(PREFIX)
