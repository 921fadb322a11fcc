"""Lets the tests run as on another processor: with bf16 instructions, or without.

Newton-Schulz of Muon runs in bf16 where torch says that the processor multiplies it, so what a test sees depends on the
processor. `TEST_BF16` (0 or 1) in the environment decides it instead; `make test-processors` runs what depends on it
with both, and with the instruction sets that torch and oneDNN can be told of.
A test that compares runs to fp32's rounding decides it for itself, with `processor_with`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCHES = {"TEST_BF16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported")}
"""Questions to `torch.cpu`, by the variable that answers them."""


def pretend_processor() -> None:
    """Makes torch answer as the environment says; without these variables it does nothing."""
    told = {name: os.environ[name] == "1" for name in SWITCHES if os.environ.get(name)}
    if not told:
        return
    import torch

    for name, answer in told.items():
        for question in SWITCHES[name]:
            setattr(torch.cpu, question, lambda answer=answer: answer)


@contextmanager
def processor_with(**switches: str) -> Iterator[None]:
    """The same within a block, for this process and for the ranks that it starts: `processor_with(TEST_BF16="0")`."""
    import torch

    answers, questions = vars(torch.cpu), [question for several in SWITCHES.values() for question in several]
    environment, kept = dict(os.environ), {name: answers[name] for name in questions if name in answers}
    os.environ.update(switches)
    pretend_processor()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for name in questions:
            answers.pop(name, None)
        answers.update(kept)
