"""Where a model runs that is looked at, not trained."""

from __future__ import annotations

from common.errors import InputError


class DeviceError(InputError, RuntimeError):
    """There is no device of this name on this machine."""


def choose_device(device: str | None) -> str:
    """The named device, else the accelerator if there is one, else the CPU.

    Raises:
        DeviceError: torch does not know the name, or this machine has no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        reason = str(error).splitlines()[0]
        raise DeviceError(f"--device {device}: {reason}; give cpu, cuda, cuda:1 or the like") from error
    return device
