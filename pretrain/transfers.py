"""What goes between host and device in a step, arranged so that the host does not wait for it.

    batch, page-locked   --copies that nobody waits for-->   forward, backward
    a few numbers        <--one copy, enqueued early------   loss, metrics, losses of samples; norm of the gradients

The host waits for a device wherever it needs a value from there: each such place drains the queue of kernels, and the
device then idles until the host has launched new ones. docs/scaling.md counts the places of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipeline.loader import Batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch for a forward pass: tensors on the device, single numbers (such as `step`) still on the host.

    A number says something about the batch that the host acts upon; on the device it would have to be waited for.
    """
    return {name: _sent(tensor, device) if tensor.dim() else tensor for name, tensor in batch.items()}


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; a copy from memory that is not page-locked would be waited for."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Reading:
    """Numbers on their way to the host: the copy is enqueued at once and waited for only when they are asked for.

    Args:
        numbers: [N] of any type, on any device.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach()
        self._arrived: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def values(self) -> list[float]:
        """The numbers; waits if the device has not come that far."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return self._numbers.tolist()
