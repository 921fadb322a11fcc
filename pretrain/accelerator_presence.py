"""Whether this machine has an accelerator, and telling DeepSpeed when it has none.

DeepSpeed looks for an accelerator when it is imported, and every process that finds none warns: a job of two ranks
prints it four times. Where torch sees none either, the answer is given before it is asked.
"""

from __future__ import annotations

import os
from functools import cache

VARIABLE = "DS_ACCELERATOR"
"""The environment variable by which DeepSpeed is told which accelerator to take."""


@cache
def accelerator_available() -> bool:
    """Whether torch sees an accelerator here. Imports torch."""
    import torch

    return torch.accelerator.is_available()


def told_accelerator() -> dict[str, str]:
    """The variable to set for DeepSpeed: none where there is an accelerator, or where the user has set it."""
    return {} if VARIABLE in os.environ or accelerator_available() else {VARIABLE: "cpu"}


def tell_deepspeed() -> None:
    """Sets the variable in this process; DeepSpeed must not have been imported."""
    os.environ.update(told_accelerator())
