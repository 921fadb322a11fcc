"""Parameter groups and optimizers: who is decayed, who is orthogonalised.

decayed        matrices
undecayed      vectors (norm weights, biases) and what the model names in no_weight_decay() (series scales)
muon           with `name: muon`, the decayed matrices that are not embeddings or the head; the rest stays with AdamW
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pretrain.config import OptimizerConfig


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an optimizer and its hyperparameters."""

    name: str
    parameters: list[nn.Parameter]
    parameter_names: list[str]
    weight_decay: float
    use_muon: bool = False


def parameter_groups(model: nn.Module, undecayed: set[str], config: OptimizerConfig) -> list[ParameterGroup]:
    """Splits the trainable parameters of `model` into groups; every parameter lands in exactly one.

    Args:
        model: the model before DeepSpeed sees it (shapes must be whole).
        undecayed: names of matrices that must not be decayed.
        config: optimizer, its decay.

    Raises:
        ValueError: `undecayed` names a parameter that the model does not have.
    """
    named = dict(model.named_parameters())  # shared (tied) parameters appear once
    if unknown := undecayed - set(named):
        raise ValueError(f"no_weight_decay() names parameters that the model does not have: {sorted(unknown)}")
    embeddings = {id(parameter) for parameter in _embedding_parameters(model)}
    members: dict[str, list[str]] = {"muon": [], "decayed": [], "undecayed": []}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name in undecayed:
            members["undecayed"].append(name)
        elif config.name == "muon" and id(parameter) not in embeddings:
            members["muon"].append(name)
        else:
            members["decayed"].append(name)
    return [
        ParameterGroup(
            name=group,
            parameters=[named[name] for name in names],
            parameter_names=names,
            weight_decay=0.0 if group == "undecayed" else config.weight_decay,
            use_muon=group == "muon",
        )
        for group, names in members.items()
        if names
    ]


def _embedding_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Input embeddings and the output head: look-up tables, for which orthogonalised updates make no sense.

    A factorised input embedding counts whole: its projection stands for a table.
    """
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return [parameter for module in (*tables, *ends) if module is not None for parameter in module.parameters()]


def build_optimizer(groups: list[ParameterGroup], config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer over `groups`; `lr` is AdamW's peak. Every torch group carries its `name`."""
    adamw: dict[str, Any] = {"lr": lr, "betas": config.betas, "eps": config.eps}
    described: list[dict[str, Any]] = []
    for group in groups:
        hyperparameters: dict[str, Any] = {"params": group.parameters, "weight_decay": group.weight_decay}
        if config.name == "adamw":
            described.append({**hyperparameters, **adamw, "name": group.name})
        elif group.use_muon:
            # "gram": Newton-Schulz in fp16 where the device has it, else fp32; never a slow emulated bf16.
            muon = {"lr": config.muon_lr, "momentum": config.muon_momentum, "ns_method": "gram"}
            described.append({**hyperparameters, **muon, "use_muon": True, "name": group.name})
        else:
            described.append({**hyperparameters, **adamw, "use_muon": False, "name": group.name})
    if config.name == "adamw":
        return torch.optim.AdamW(described, fused=True)

    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # compiles kernels when imported

    for group in groups:
        for parameter in group.parameters:
            parameter.use_muon = group.use_muon  # type: ignore[attr-defined]  # ZeRO looks for this mark
    return MuonWithAuxAdam(described)
