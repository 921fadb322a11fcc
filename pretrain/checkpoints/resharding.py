"""Gives an engine the whole state of a checkpoint that other ranks, or another ZeRO stage, have written.

    whole tensors --> the piece that this rank holds at its stage --> master weights, optimizer state, buffers

Where a rank's pieces lie follows from the engine itself, at every stage. What the model computes with is then refreshed
from the master weights, as after a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoints.whole_state import WEIGHT, WholeState
from pretrain.engine import Engine
from pretrain.errors import CheckpointError
from pretrain.optimizers.master_weights import MasterWeights
from pretrain.optimizers.muon import MOMENTUM
from pretrain.optimizers.pieces import Piece, held_pieces


def restore(engine: Engine, whole: WholeState) -> None:
    """Fills `engine`, freshly made, from `whole`. Collective.

    Raises:
        CheckpointError: a parameter is missing there, has another shape, or was trained by another optimizer.
    """
    base = _base_optimizer(engine)
    with torch.no_grad():
        for piece in held_pieces(engine):
            keys = whole.keys(piece.name, piece.shape)
            _check_optimizer(piece, keys, whole)
            _put(piece.flat, piece, whole.part(WEIGHT, piece.name, piece.start, piece.size))
            kept: dict[str, Any] = base.state.setdefault(piece.flat, {})
            for key in keys - {WEIGHT}:
                value = whole.part(key, piece.name, piece.start, piece.size)
                if value.ndim == 0:
                    kept[key] = value.float().to(piece.flat.device)  # DeepSpeed's Muon counted AdamW's steps in int
                else:
                    kept.setdefault(key, torch.zeros_like(piece.flat))
                    _put(kept[key], piece, value)
        _refresh_weights(engine)
        buffers = dict(engine.model.named_buffers())
        for name, value in whole.buffers().items():
            buffers[name].copy_(value)


def _base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    return engine.wrapped.optimizer.optimizer if engine.stage else engine.wrapped.optimizer


def _put(flat: Tensor, piece: Piece, values: Tensor) -> None:
    flat.view(-1)[piece.begin : piece.begin + piece.size].copy_(values)


def _check_optimizer(piece: Piece, keys: set[str], whole: WholeState) -> None:
    found = keys - {WEIGHT}
    expected = {MOMENTUM} if piece.muon else {"exp_avg", "exp_avg_sq", "step"}
    if found and found != expected:  # nothing is kept of a parameter that has never been updated
        raise CheckpointError(
            f"{whole.folder}: the optimizer kept {', '.join(sorted(found))} of {piece.name}, but this run's would keep "
            f"{', '.join(sorted(expected))}; set optimizer.name {'muon' if MOMENTUM in found else 'adamw'}, as then"
        )


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
