"""Peak throughput of known accelerators: dense bf16 TFLOP/s (without sparsity), from the vendors' data sheets.

Names that differ by a letter are other devices (an L40 is no L4, an H100 on PCIe no H100 on SXM), so a name is compared
word by word. A part of a device (MIG), a laptop's or a cut-down variant is not in the table: its peak is measured.
"""

from __future__ import annotations

import re

KNOWN_BF16_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIE": 756.0,
    "H100": 989.0,
    "H800 PCIE": 756.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
}
"""By the words that a device's name contains; of several that fit, the first stands here."""

OTHER_DEVICES = {"MIG", "GRID", "VGPU", "LAPTOP", "MAX", "D"}
"""Words that make a device another one than the table's."""


def known_peak(name: str) -> float | None:
    """The dense bf16 peak in TFLOP/s of the device that its driver calls `name`; None for one that is not known."""
    words = re.split(r"[\s\-_/]+", name.upper())
    if OTHER_DEVICES & set(words):
        return None
    return next((peak for known, peak in KNOWN_BF16_TFLOPS.items() if set(known.split()) <= set(words)), None)
