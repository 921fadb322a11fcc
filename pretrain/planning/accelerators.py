"""What a plan knows of devices: memory and peak of one, from the vendors' data sheets; of a CPU, from the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from pretrain.errors import ConfigurationError
from pretrain.monitoring.device_peaks import KNOWN_BF16_TFLOPS
from pretrain.monitoring.throughput import peak_tflops
from pretrain.planning.options import Kind

GB = 10**9
SHEETS: dict[str, tuple[str, str]] = {
    "b200-180": ("B200", "NVIDIA HGX B200 data sheet, 180GB a GPU"),
    "h200-141": ("H200", "NVIDIA H200 Tensor Core GPU data sheet, SXM 141GB"),
    "h100-80": ("H100", "NVIDIA H100 Tensor Core GPU data sheet, SXM 80GB"),
    "h100-pcie-80": ("H100 PCIE", "NVIDIA H100 Tensor Core GPU data sheet, PCIe 80GB"),
    "h800-80": ("H800", "NVIDIA H800 Tensor Core GPU data sheet, SXM 80GB"),
    "h20-96": ("H20", "NVIDIA H20 data sheet, 96GB"),
    "a100-40": ("A100", "NVIDIA A100 Tensor Core GPU data sheet, 40GB"),
    "a100-80": ("A100", "NVIDIA A100 Tensor Core GPU data sheet, 80GB"),
    "a800-80": ("A800", "NVIDIA A800 Tensor Core GPU data sheet, 80GB"),
    "a10-24": ("A10", "NVIDIA A10 Tensor Core GPU data sheet, 24GB"),
    "l40s-48": ("L40S", "NVIDIA L40S GPU data sheet, 48GB"),
    "l40-48": ("L40", "NVIDIA L40 GPU data sheet, 48GB"),
    "l4-24": ("L4", "NVIDIA L4 Tensor Core GPU data sheet, 24GB"),
    "4090-24": ("RTX 4090", "NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090, 24GB"),
}
"""By kind: its name in `KNOWN_BF16_TFLOPS`, and the source of its memory, the number after the last dash in GB."""


@dataclass(frozen=True)
class Device:
    """One rank's device."""

    kind: str
    """As it was asked for."""
    memory: float
    """Bytes."""
    memory_source: str
    """Where that number is from."""
    peak_tflops: float
    """In bf16, of a CPU in fp32."""
    peak_source: str
    """Where that number is from."""


def find_device(kind: Kind, ranks_per_node: int, memory_gb: float | None, tflops: float | None) -> Device:
    """The device of one rank.

    Args:
        kind: of device; a cpu is this machine, shared by the ranks of a node.
        ranks_per_node: ranks that share a node.
        memory_gb: memory of one rank instead of the known one, in 10^9 bytes.
        tflops: peak of one rank instead of the known one.
    """
    if kind == "cpu":
        node, source = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), "this machine's memory"
        memory, where = node / ranks_per_node, f"{source} over {ranks_per_node} rank(s)"
        if tflops is None:
            measured, origin = peak_tflops(torch.device("cpu"), torch.float32)
            tflops, peak = measured / ranks_per_node, f"{origin}, over {ranks_per_node} rank(s)"
        else:
            peak = "telemetry.peak_tflops"
    else:
        name, where = SHEETS[kind]
        memory = float(kind.rpartition("-")[2]) * GB
        tflops, peak = (KNOWN_BF16_TFLOPS[name], "dense bf16, same data sheet") if tflops is None else (
            tflops, "telemetry.peak_tflops")  # fmt: skip
    if memory_gb is not None:
        if not memory_gb > 0:
            raise ConfigurationError(f"memory_gb is {memory_gb}; it must be greater than 0")
        memory, where = memory_gb * GB, "--memory_gb"
    return Device(kind, memory, where, tflops, peak)
