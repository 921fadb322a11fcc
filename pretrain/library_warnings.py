"""Warnings of libraries about themselves, on which nobody who trains can act: once per process, across a bar."""

from __future__ import annotations

import logging
import warnings

from pretrain.accelerator_presence import accelerator_available


def silence_library_warnings() -> None:
    """Silences what is known to say nothing about the run; everything else is still printed. Imports torch."""
    # DeepSpeed calls collectives by names that torch has since given up.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # transformers renamed it; the versions that have no other name are supported too.
    warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
    # Our Muon is not on DeepSpeed's list of optimizers; tests/pretrain/test_muon.py has tried it at every stage.
    logging.getLogger("DeepSpeed").addFilter(_says_more)
    if not accelerator_available():
        # Compiling for the CPU looks for CUDA as well, and finds its compiler without a device.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _says_more(record: logging.LogRecord) -> bool:
    return "ZeRO with an untested optimizer" not in record.getMessage()
