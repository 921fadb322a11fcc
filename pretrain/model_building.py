"""A model for stage 3, without a copy of it on every rank: rank 0 builds it, and it is cut up parameter by parameter.

    rank 0       task.build_model(seed) on the host, the very values of the other stages
    other ranks  task.skeleton(): modules and shapes, one number of memory for each parameter
    each param   whole on every rank's device in the engine's type --> its part --> freed

So one host holds one model in fp32 (28 GB for 7 billion parameters), and not each of its 8 ranks; a device holds its
part and one parameter more. Tasks whose skeleton is None build it on every rank, as at the other stages. DeepSpeed's
own way, modules built inside `zero.Init`, cuts them before transformers draws their values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.ranks.world import World
from pretrain.tasks.base import Task


def build_for_partition(task: Task, seed: int, world: World) -> nn.Module:
    """The model whose shapes are right on every rank, and whose values are right on rank 0 at least."""
    skeleton = None if world.is_main else task.skeleton()
    if skeleton is None:
        return task.build_model(seed)
    _hold_shapes(skeleton)
    return skeleton


def partition(model: nn.Module, world: World, settings: dict[str, Any]) -> None:
    """Cuts the parameters of `build_for_partition` among the ranks; buffers become rank 0's. Collective.

    Args:
        model: after everything that looks at shapes has done so; its parameters stay the same objects.
        world: the ranks.
        settings: the DeepSpeed configuration of the run.
    """
    # An empty module: this is only to choose type, group and device, and to replace the linear function by one that
    # does not keep gathered weights for backward.
    cutter = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings)
    for parameter in model.parameters():
        dtype = cutter.dtype if parameter.is_floating_point() else parameter.dtype
        if world.is_main or not _is_shape_only(parameter):
            parameter.data = parameter.data.to(world.device, dtype).contiguous()
        else:
            parameter.data = torch.empty(parameter.shape, dtype=dtype, device=world.device)
        cutter._convert_to_zero_parameters([parameter])  # sends rank 0's values, keeps the own part
    _share_buffers(model, world)


def _hold_shapes(model: nn.Module) -> None:
    """Puts parameters of one number, repeated, in place of those on the meta device, which could take no values."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                repeated = torch.zeros(1, dtype=parameter.dtype).expand(parameter.shape)
                made[id(parameter)] = nn.Parameter(repeated, requires_grad=parameter.requires_grad)
                made[id(parameter)].__dict__.update(parameter.__dict__)
            module._parameters[name] = made[id(parameter)]


def _is_shape_only(parameter: Tensor) -> bool:
    return parameter.untyped_storage().nbytes() < parameter.numel() * parameter.element_size()


def _share_buffers(model: nn.Module, world: World) -> None:
    """Rank 0's buffers on every rank's device, and tensors that modules keep beside them where they are there."""
    shared: dict[int, Tensor] = {}
    for place, name, tensor in _tensors(model):
        if id(tensor) not in shared:
            sent = tensor.to(world.device) if not tensor.is_meta else torch.empty_like(tensor, device=world.device)
            flat = sent.contiguous().reshape(-1)
            dist.broadcast(flat.view(torch.uint8), src=0)
            shared[id(tensor)] = flat.view(tensor.shape)
        buffered = isinstance(place, nn.Module)
        (place._buffers if buffered else place)[name] = shared[id(tensor)] if buffered else shared[id(tensor)].cpu()


def _tensors(model: nn.Module) -> Iterator[tuple[Any, str, Tensor]]:
    """Every tensor of a model that is not a parameter: where it is kept, and its name there."""
    for module in model.modules():
        for name, buffer in [*module._buffers.items()]:
            if buffer is not None:
                yield module, name, buffer
        for name, value in [*vars(module).items()]:
            if isinstance(value, Tensor):
                yield vars(module), name, value
