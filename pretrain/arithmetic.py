"""How devices may compute: rounded to TF32 or not, in a fixed order or in the fastest one.

Sums on a GPU depend on the order in which threads arrive, and kernels are chosen by how fast they were a moment ago.
`engine.deterministic` fixes both, on one type of device with one number of ranks; it costs speed and some memory:

    torch.use_deterministic_algorithms   operators without atomics, inductor without autotuning that changes numbers,
                                         memory-efficient attention without split sums; others raise
    cudnn.deterministic, not benchmark   convolutions by rule
    CUBLAS_WORKSPACE_CONFIG=:4096:8      cuBLAS sums in workspaces of its own (NVIDIA, "Results reproducibility")
    FLASH_ATTENTION_DETERMINISTIC=1      flash-attn's backward, through transformers
    NCCL_ALGO=Ring                       one algorithm for every size; NCCL would choose by size and topology, and
                                         NVLS sums in the switch

A CPU computes in a fixed order anyway. The environment is set before CUDA and NCCL read it, unless it says otherwise.
"""

from __future__ import annotations

import os

import torch

from pretrain.config import EngineConfig

DETERMINISTIC_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
    "NCCL_ALGO": "Ring",
}


def set_arithmetic(config: EngineConfig) -> None:
    """Sets this process's arithmetic; call it before the first use of a device and of a process group."""
    if config.deterministic:
        for name, value in DETERMINISTIC_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.tf32


def describe_arithmetic(device: str) -> str:
    """What was set, read back, for the audit of a run on this kind of device ("cpu", "cuda")."""
    products = "exact" if torch.get_float32_matmul_precision() == "highest" else "in TF32 on CUDA"
    if not torch.are_deterministic_algorithms_enabled():
        order = "a fixed order" if device == "cpu" else "any order (engine.deterministic fixes it)"
        return f"fp32 products {products}; sums in {order}"
    variables = ", ".join(f"{name}={os.environ.get(name)}" for name in DETERMINISTIC_ENVIRONMENT)
    return f"fp32 products {products}; deterministic algorithms only ({variables})"
