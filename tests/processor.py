"""Lets the tests run as on another processor: with the half types that DeepSpeed is told it has.

Newton-Schulz of Muon runs in the type that `is_fp16_supported` and `is_bf16_supported` name, so what a test sees
depends on the processor. `TEST_FP16` and `TEST_BF16` (0 or 1) in the environment decide it instead; `make
test-processors` runs what depends on it with each, and with the instruction sets that torch and oneDNN can be told of.
"""

from __future__ import annotations

import os

SWITCHES = {"TEST_FP16": "is_fp16_supported", "TEST_BF16": "is_bf16_supported"}


def pretend_processor() -> None:
    """Makes DeepSpeed's accelerator answer as the environment says; without these variables it does nothing."""
    told = {method: os.environ[name] == "1" for name, method in SWITCHES.items() if os.environ.get(name)}
    if not told:
        return
    from deepspeed.accelerator import get_accelerator

    for method, answer in told.items():
        setattr(get_accelerator(), method, lambda answer=answer: answer)
