"""Parameter groups and optimizers: who is decayed, who is orthogonalised.

decayed        matrices
undecayed      vectors (norm weights, biases) and what the model names in no_weight_decay() (series scales)
muon           with `name: muon`, the decayed matrices (of a convolution: a filter a row) that are not embeddings, do
               not read pixels and are not the head; the rest stays with AdamW

Each group is split again where parts of the model have learning rates of their own: by what they are
(`OptimizerConfig.embedding_lr_factor` and its siblings), and by where they are (`Task.learning_rate_factors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pretrain.config import OptimizerConfig
from pretrain.optimizers.muon import Muon


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an optimizer and its hyperparameters."""

    name: str
    parameters: list[nn.Parameter]
    parameter_names: list[str]
    weight_decay: float
    use_muon: bool = False
    lr_factor: float = 1.0
    """The group's learning rate, in those of the configuration."""

    def holding(self, parameters: Sequence[nn.Parameter]) -> ParameterGroup:
        """The same group with other parameters in place of its own, in the same order."""
        return replace(self, parameters=list(parameters))


def parameter_groups(
    model: nn.Module, undecayed: set[str], config: OptimizerConfig, lr_factors: Mapping[str, float] | None = None
) -> list[ParameterGroup]:
    """Splits the trainable parameters of `model` into groups; every parameter lands in exactly one.

    Args:
        model: the model before DeepSpeed sees it (shapes must be whole).
        undecayed: names of matrices that must not be decayed.
        config: optimizer, its decay.
        lr_factors: factor of the learning rate by the prefix of parameters' names; elsewhere it is 1.

    Raises:
        ValueError: `undecayed` names a parameter that the model does not have, or a prefix fits no
            parameter, or two fit one.
    """
    named = dict(model.named_parameters())  # shared (tied) parameters appear once
    if unknown := undecayed - set(named):
        raise ValueError(f"no_weight_decay() names parameters that the model does not have: {sorted(unknown)}")
    tables, head = _tables(model), _head(model)
    factors = _factors([name for name, p in named.items() if p.requires_grad], lr_factors or {})
    kind_of = {}
    for name in factors:
        parameter = named[name]
        if parameter.ndim < 2 or name in undecayed:
            kind_of[name], own = "undecayed", config.vector_lr_factor
        elif id(parameter) in tables:
            kind_of[name], own = "decayed", config.embedding_lr_factor
        elif id(parameter) in head:
            kind_of[name], own = "decayed", config.head_lr_factor
        else:
            kind_of[name], own = ("muon" if config.name == "muon" else "decayed"), 1.0
        factors[name] *= own
    kinds = ("muon", "decayed", "undecayed")
    members: dict[tuple[str, float], list[str]] = {
        (kind, factor): [] for factor in dict.fromkeys([1.0, *factors.values()]) for kind in kinds
    }
    for name, factor in factors.items():
        members[kind_of[name], factor].append(name)
    for (kind, _), group in members.items():
        if kind == "muon":  # in the order in which DeepSpeed's Muon has written them, which earlier checkpoints keep
            group.sort(key=lambda name: named[name].shape, reverse=True)
    return [
        ParameterGroup(
            name=group if factor == 1 else f"{group} x{factor:g}",
            parameters=[named[name] for name in names],
            parameter_names=names,
            weight_decay=0.0 if group == "undecayed" else config.weight_decay,
            use_muon=group == "muon",
            lr_factor=factor,
        )
        for (group, factor), names in members.items()
        if names
    ]


def _factors(names: list[str], by_prefix: Mapping[str, float]) -> dict[str, float]:
    """The learning-rate factor of each parameter."""
    fitting = {name: [prefix for prefix in by_prefix if name.startswith(prefix)] for name in names}
    used = {prefix for prefixes in fitting.values() for prefix in prefixes}
    if unused := set(by_prefix) - used:
        raise ValueError(f"learning_rate_factors() has prefixes that no trained parameter has: {sorted(unused)}")
    if several := next((name for name, prefixes in fitting.items() if len(prefixes) > 1), None):
        raise ValueError(f"learning_rate_factors() has several prefixes for {several}: {sorted(fitting[several])}")
    return {name: float(by_prefix[prefixes[0]]) if prefixes else 1.0 for name, prefixes in fitting.items()}


def _tables(model: nn.Module) -> set[int]:
    """Ids of the parameters of look-up tables, for which orthogonalised updates make no sense; a tied head is one.

    A factorised input embedding counts whole: its projection stands for a table. Of a model of images, what reads the
    pixels is its input embedding.
    """
    ends = getattr(model, "get_input_embeddings", lambda: None)()
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return {id(parameter) for module in (*modules, ends) if module is not None for parameter in module.parameters()}


def _head(model: nn.Module) -> set[int]:
    """Ids of the parameters of the output head, a table read from the other side."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return set() if head is None else {id(parameter) for parameter in head.parameters()}


def build_optimizer(groups: list[ParameterGroup], config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer over `groups`; `lr` is AdamW's peak. Every torch group carries its `name`."""
    described: list[dict[str, Any]] = []
    for group in groups:
        hyperparameters: dict[str, Any] = {"params": group.parameters, "weight_decay": group.weight_decay}
        adamw: dict[str, Any] = {"lr": lr * group.lr_factor, "betas": config.betas, "eps": config.eps}
        if config.name != "muon":
            described.append({**hyperparameters, **adamw, "name": group.name})
        elif group.use_muon:
            muon = {"lr": config.muon_lr * group.lr_factor, "momentum": config.muon_momentum}
            described.append({**hyperparameters, **muon, "use_muon": True, "name": group.name})
        else:
            described.append({**hyperparameters, **adamw, "use_muon": False, "name": group.name})
    if config.name != "muon":
        return torch.optim.AdamW(described, fused=True)
    return Muon(described, config.muon_steps)
