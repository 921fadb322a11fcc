"""One micro-batch of a task, forward and backward, with the model and the batch as the engine has them on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.loader import Batch
from pretrain.command_line import parse
from pretrain.tasks.base import LossOutput, Task, TaskModule
from pretrain.transfers import on_device
from tests.device.observations import Observations
from tests.device.pretended import CUDA, PretendedDevice, PretendedTensor
from tests.pretrain.task_cases import Materials, arguments

STEP = 3
"""The step that the batch says it belongs to."""


@dataclass
class Ready:
    """A task, its model in the engine's type, and a micro-batch on the host."""

    task: Task
    module: TaskModule
    batch: Batch

    def gradients(self) -> dict[str, Tensor | None]:
        return {name: parameter.grad for name, parameter in self.module.model.named_parameters()}


def prepare(
    case: str, materials: Materials, dtype: torch.dtype = torch.bfloat16, size: int = 4, **changes: Any
) -> Ready:
    """A case of `task_cases.CASES`, built like `Engine` builds it, and its first `size` samples."""
    config, _ = parse(arguments(case, materials, Path(materials.folder / f"{case}.run"), **changes))
    task = config.task
    sources, _ = task.training_sources()
    model = task.build_model(config.seed)
    task.prepare_model(model, config.engine.activation_checkpointing, config.engine.compile is True)
    batch = task.collate([sources[0].sample(index) for index in range(size)])
    batch = {**batch, "sample_ids": torch.arange(size), "step": torch.tensor(STEP)}
    return Ready(task, TaskModule(task, model.to(dtype)).train(), batch)


def on_pretended_device(ready: Ready, device: PretendedDevice) -> tuple[LossOutput, Observations]:
    """Forward and backward on the device. What is watched is the second micro-batch: the first moves a teacher, say."""
    module: nn.Module = device.move(ready.module)
    with device:
        batch = on_device(ready.batch, CUDA)
        module(batch).total.backward()
        module.zero_grad()
        with device.watching() as seen:
            output = module(batch)
            output.total.backward()
    return output, seen


def host_values(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Gradients without their device; parameters without one are left out."""
    return {
        name: tensor.value if isinstance(tensor, PretendedTensor) else tensor
        for name, tensor in tensors.items()
        if tensor is not None
    }
