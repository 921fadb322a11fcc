"""Cutting: a model goes in, a smaller one comes out; the donor is never written to.

Every function returns a new model that shares what it did not cut with the one it was given, so a stage costs the
memory of what it keeps. Between stages a model computes but is not yet described by a configuration (a bottleneck of 56
units at width 4096 is not a divisor); `assemble` moves the result into a model of the target's configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from ..pangu_pi import PanguPiConfig, PanguPiForCausalLM
from .errors import SurgeryError
from .groups import Kind, unit_sets


def shared_copy(model: PanguPiForCausalLM) -> PanguPiForCausalLM:
    """A copy of the modules and the configuration around the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def keep_layers(model: PanguPiForCausalLM, layers: Sequence[int]) -> PanguPiForCausalLM:
    """The model with only these layers, renumbered in the given order."""
    smaller = shared_copy(model)
    smaller.model.layers = nn.ModuleList([smaller.model.layers[index] for index in layers])
    for index, layer in enumerate(smaller.model.layers):
        layer.self_attn.layer_idx = index
    smaller.config.num_hidden_layers = len(layers)
    return smaller


@torch.no_grad()
def keep_units(model: PanguPiForCausalLM, kind: Kind, kept: Sequence[torch.Tensor]) -> PanguPiForCausalLM:
    """The model with only these units of one kind.

    Args:
        model: what to cut.
        kind: which units.
        kept: ascending indices of the kept units, for every set of the kind (every layer; one for `hidden`).
    """
    smaller = shared_copy(model)
    for units, indices in zip(unit_sets(model)[kind], kept, strict=True):
        for member in units.members:
            entries = member.entries(indices.to(model.device))
            set_parameter(smaller, member.name, model.get_parameter(member.name).index_select(member.dim, entries))
    return smaller


@torch.no_grad()
def keep_rows(model: PanguPiForCausalLM, rows: torch.Tensor) -> PanguPiForCausalLM:
    """The model with only these rows of the embedding and the head: new id i is old id `rows[i]`."""
    smaller = shared_copy(model)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in dict(model.named_parameters()):
            set_parameter(smaller, name, model.get_parameter(name).index_select(0, rows.to(model.device)))
    smaller.config.vocab_size = len(rows)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(smaller.config, role, _renumbered(getattr(model.config, role), rows))
    return smaller


def _renumbered(old: int | list[int] | None, rows: torch.Tensor) -> int | list[int] | None:
    """The new id of a special token, or of each in a list; those whose row is gone are left out."""
    if old is None:
        return None
    new = [int(place) for token in ([old] if isinstance(old, int) else old) for place in (rows == token).nonzero()]
    return (new[0] if new else None) if isinstance(old, int) else new or None


@torch.no_grad()
def scale_norms(model: PanguPiForCausalLM, ratios: dict[str, float]) -> PanguPiForCausalLM:
    """The model with every named norm's weight multiplied (see `norms.norm_ratios`)."""
    scaled = shared_copy(model)
    for name, ratio in ratios.items():
        set_parameter(scaled, name, model.get_parameter(name) * ratio)
    return scaled


def set_parameter(model: PanguPiForCausalLM, name: str, value: torch.Tensor) -> None:
    """Put a new parameter in the place of `name`; a head tied to the embedding follows it."""
    module, _, leaf = name.rpartition(".")
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    setattr(model.get_submodule(module), leaf, nn.Parameter(value))
    if tied and module == "model.embed_tokens":
        model.lm_head.weight = model.model.embed_tokens.weight


@torch.no_grad()
def assemble(model: PanguPiForCausalLM, config: PanguPiConfig, seed: int = 0) -> PanguPiForCausalLM:
    """A model of the configuration `config` with the weights of `model`, in its type and on its device.

    What `model` lacks starts as `config` says: series terms and shortcuts at identity, unless `series_init` or
    `shortcut_init` ask for something else. An untied head that a tied model lacks is a copy of its embedding, which
    computes the same; the head of an untied model is dropped where `config` ties it, which does not.

    Args:
        model: a model cut to the sizes of `config`.
        config: the target.
        seed: of what the target's own additions draw.

    Raises:
        SurgeryError: a parameter has another shape in `config`, or nothing to come from.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        target = PanguPiForCausalLM(config)
    source = dict(model.named_parameters())
    source.setdefault("lm_head.weight", source["model.embed_tokens.weight"])
    for name, parameter in target.named_parameters():
        if name not in source:
            if "act_fn" not in name and "shortcut" not in name:
                raise SurgeryError(f"{name}: the donor has no such parameter")
            continue
        if parameter.shape != source[name].shape:
            raise SurgeryError(
                f"{name} has shape {list(source[name].shape)} after the cut, the target {list(parameter.shape)}"
            )
        parameter.copy_(source[name])
    return target.to(device=model.device, dtype=model.dtype).eval()


__all__ = ["assemble", "keep_layers", "keep_rows", "keep_units", "scale_norms", "set_parameter", "shared_copy"]
