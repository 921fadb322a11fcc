"""Gives an engine the whole state of a checkpoint that other ranks, or another ZeRO stage, have written.

    whole tensors --> the piece that this rank holds at its stage --> master weights, optimizer state, buffers

Where a rank's pieces lie follows from the engine itself, at every stage. What the model computes with is then refreshed
from the master weights, as after a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor, nn

from pretrain.engine import Engine
from pretrain.errors import CheckpointError
from pretrain.master_weights import MasterWeights
from pretrain.whole_state import MOMENTUM, PREFIX, WEIGHT, State, WholeState


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


def restore(engine: Engine, whole: WholeState) -> None:
    """Fills `engine`, freshly made, from `whole`. Collective.

    Raises:
        CheckpointError: a parameter is missing there, has another shape, or was trained by another optimizer.
    """
    base = _base_optimizer(engine)
    momenta: dict[Tensor, list[Tensor]] = {}
    with torch.no_grad():
        for piece in _pieces(engine):
            state = whole.of(piece.name, piece.shape)
            _check_optimizer(piece, state, whole)
            _put(piece.flat, piece, state.pop(WEIGHT))
            kept: dict[str, Any] = base.state.setdefault(piece.flat, {})
            for key, value in state.items():
                if value.ndim == 0:
                    kept[key] = value.to(piece.flat.device) if value.is_floating_point() else int(value)
                elif piece.muon and _keeps_whole_momenta(engine):
                    momenta.setdefault(piece.flat, []).append(value.flatten())
                else:
                    kept.setdefault(key, torch.zeros_like(piece.flat))
                    _put(kept[key], piece, value)
        for flat, matrices in momenta.items():  # whole matrices, one after the other: see whole_state.py
            base.state[flat][MOMENTUM] = torch.cat(matrices).to(flat.device)
        _refresh_weights(engine)
        buffers = dict(engine.model.named_buffers())
        for name, value in whole.buffers().items():
            buffers[name].copy_(value)


def _base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    return engine.wrapped.optimizer.optimizer if engine.stage else engine.wrapped.optimizer


def _keeps_whole_momenta(engine: Engine) -> bool:
    """Whether Muon's momentum is not cut as the weights are: BF16_Optimizer cuts both alike."""
    return engine.stage in (1, 2) and not isinstance(engine.wrapped.optimizer, BF16_Optimizer)


def _put(flat: Tensor, piece: Piece, whole: Tensor) -> None:
    values = whole.flatten()[piece.start : piece.start + piece.size]
    flat.view(-1)[piece.begin : piece.begin + piece.size].copy_(values)


def _check_optimizer(piece: Piece, state: State, whole: WholeState) -> None:
    found = set(state) - {WEIGHT}
    expected = {MOMENTUM} if piece.muon else {"exp_avg", "exp_avg_sq", "step"}
    if found and found != expected:  # nothing is kept of a parameter that has never been updated
        raise CheckpointError(
            f"{whole.folder}: the optimizer kept {', '.join(sorted(found))} of {piece.name}, but this run's would keep "
            f"{', '.join(sorted(expected))}; use the optimizer.name of the earlier run"
        )


def _pieces(engine: Engine) -> Iterator[Piece]:
    """What this rank updates."""
    if engine.stage == 0:
        for group, held in zip(engine.groups, engine.optimizer.param_groups, strict=True):
            for name, parameter in zip(group.parameter_names, held["params"], strict=True):
                yield Piece(parameter, 0, name, parameter.shape, 0, parameter.numel(), group.use_muon)
        return
    zero = engine.wrapped.optimizer
    if engine.stage == 3:
        for flat, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            begin = 0
            for parameter in parameters:
                share, whole = parameter.partition_numel(), parameter.ds_numel
                start = min(engine.world.rank * share, whole)
                size = min(share, whole - start)
                yield Piece(flat, begin, *_known(zero, parameter, parameter.ds_shape), start, size, _is_muon(parameter))
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
                known = _known(zero, parameter, parameter.shape)
                yield Piece(flat, place.start, *known, start, place.numel, _is_muon(parameter))


def _known(zero: Any, parameter: nn.Parameter, shape: torch.Size) -> tuple[str, torch.Size]:
    return zero.param_names[parameter].removeprefix(PREFIX), torch.Size(shape)


def _is_muon(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "use_muon", False))


def _refresh_weights(engine: Engine) -> None:
    """The weights that the model computes with, from the master weights."""
    zero = engine.wrapped.optimizer
    if isinstance(zero, MasterWeights):
        zero.round_to_weights()
    elif engine.stage in (1, 2):
        zero.update_lp_params()
    elif engine.stage == 3:
        for flat, master in zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True):
            flat.data.copy_(master.data)
        for number, parameters in enumerate(zero.fp16_partitioned_groups):
            updated = zero.unflatten(zero.fp16_partitioned_groups_flat[number], parameters)
            for parameter, value in zip(parameters, updated, strict=True):
                parameter.data = value.data
