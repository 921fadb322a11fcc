"""Lets the tests run as on another processor: with the half types that DeepSpeed is told it has.

Newton-Schulz of Muon runs in the type that `is_fp16_supported` and `is_bf16_supported` name, so what a test sees
depends on the processor. `TEST_FP16` and `TEST_BF16` (0 or 1) in the environment decide it instead; `make
test-processors` runs what depends on it with each, and with the instruction sets that torch and oneDNN can be told of.
A test that compares runs to fp32's rounding decides it for itself, with `processor_with`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NEEDS_BF16 = pytest.mark.skipif(os.environ.get("TEST_BF16") == "0", reason="a device without bf16 trains in fp32")
SWITCHES = {"TEST_FP16": "is_fp16_supported", "TEST_BF16": "is_bf16_supported"}


def pretend_processor() -> None:
    """Makes DeepSpeed's accelerator answer as the environment says; without these variables it does nothing."""
    told = {method: os.environ[name] == "1" for name, method in SWITCHES.items() if os.environ.get(name)}
    if not told:
        return
    from deepspeed.accelerator import get_accelerator

    for method, answer in told.items():
        setattr(get_accelerator(), method, lambda answer=answer: answer)


@contextmanager
def processor_with(**switches: str) -> Iterator[None]:
    """The same within a block, for this process and for the ranks that it starts: `processor_with(TEST_FP16="0")`."""
    from deepspeed.accelerator import get_accelerator

    answers, names = vars(get_accelerator()), SWITCHES.values()
    environment, kept = dict(os.environ), {name: answers[name] for name in names if name in answers}
    os.environ.update(switches)
    pretend_processor()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for name in names:
            answers.pop(name, None)
        answers.update(kept)
