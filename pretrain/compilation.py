"""torch.compile for training: block by block, and so that ZeRO's hooks, recomputation and the audit stay outside.

    TaskModule
      model ── embedding                 eager
               block ── forward          one graph, which all blocks share
               block ── forward
               head and loss             eager

What is compiled is a block's `forward`, not its call: hooks run at the call. Stage 3 hangs hooks on every module that
has parameters, which would cut a graph at each; a block that is a leaf to ZeRO is gathered as a whole instead. Blocks
are what a model repeats (layers of a transformer or of an encoder), or what its task names; a model that repeats
nothing is one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn

RECOMPILE_LIMIT = 64
"""Graphs that one function may have before torch falls back to eager for good: training, validation and scoring, each
with full and smaller batches, and for tasks whose samples differ in length again with sizes left open."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The modules that `model` repeats: those of its lists and sequences that hold one class; itself if there are none.

    A block that lies within another one is part of it.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        children = list(module.children())
        alike = len({type(child) for child in children}) == 1
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and alike and any(map(_has_weights, children)):
            found.extend(children)
            return
        for child in children:
            look(child)

    look(model)
    return found or [model]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compiles modules in place, before DeepSpeed sees them; names of parameters do not change."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for block in blocks:
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
        set_z3_leaf_module(block, True)
        block.register_forward_pre_hook(_seen_in_backward)


def _seen_in_backward(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """At stage 3, gives a block that nothing trained precedes inputs with a gradient.

    Stage 3 notices that a block's backward pass is over by the gradient of its inputs. Without one it cuts the weights
    of a leaf while gradients still arrive.
    """
    partitioned = any(parameter.requires_grad and hasattr(parameter, "ds_id") for parameter in block.parameters())
    tensors = [value for value in inputs if isinstance(value, Tensor) and value.is_floating_point()]
    if not (partitioned and torch.is_grad_enabled()) or any(tensor.requires_grad for tensor in tensors):
        return None
    return tuple(value.detach().requires_grad_() if any(value is t for t in tensors) else value for value in inputs)


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """The model as it was before `compile_blocks`, for the body of a `with`: what looks in seldom compiles nothing."""
    compiled = {m: m.__dict__.pop("forward") for m in model.modules() if "_torchdynamo_orig_callable" in _forward(m)}
    try:
        yield
    finally:
        for module, forward in compiled.items():
            module.forward = forward


def _forward(module: nn.Module) -> dict[str, Any]:
    return getattr(module.__dict__.get("forward"), "__dict__", {})
