"""How the logits of the loss are cut into chunks on a device, and how a chunk lies in memory.

The head reads its weights twice for every chunk (logits, d hidden) and, from the second chunk on, reads and writes its
float32 gradient (d weight): in bf16 12 V D bytes beside 6 C V D floating-point operations. So C tokens of a chunk give

    time of that traffic / time of the products = 2 (F / W) / C       F peak operations/s, W bytes/s of the memory

On an H100 (data sheet: 989 TFLOP/s in bf16, 3.35 TB/s) F / W is 295: at 41 tokens the traffic takes 14 times as long as
the products, at 4,096 tokens 14 % of it, if nothing overlapped. The largest product alone moves 8 V D bytes for 2 C V D
operations, so from C = 4 F / W = 1,180 on its traffic hides behind its arithmetic. Larger chunks gain little and cost
memory: `DEVICE_TOKENS` at a vocabulary of 100,883 are 0.83 GB in bf16. Where the memory is small they take a share of
it at most: one element in `MEMORY_SHARE` bytes, 3 % of the memory in bf16 and 6 % in float32 (twice that with a
teacher). The result is rounded down to a power of two, so that ranks whose devices report slightly different sizes
still cut alike; nothing is asked of a device but its size, which is known without waiting for it.

On a CPU a chunk should stay in the last-level cache; `CPU_ELEMENTS` was measured (docs/results/loss_memory.txt).

These are arithmetic, but for the last. Shapes: C tokens of one chunk, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

CPU_ELEMENTS = 2**22
"""Logits of a chunk on a CPU: 16 MiB in float32."""
DEVICE_TOKENS = 4096
"""Tokens of a chunk on an accelerator, at most."""
MEMORY_SHARE = 64
"""Bytes of an accelerator's memory for each logit of a chunk, at least."""
UNKNOWN_MEMORY = 16 * 10**9
"""Bytes that an accelerator is taken to have which does not say."""
ROW_MULTIPLE = 64
"""Elements that a row of logits on an accelerator is a multiple of: 128 bytes in bf16, a line of its cache. Tensor
cores want 16 bytes; a vocabulary such as 100,883 would leave every second row at an odd address."""
FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LossLayout:
    """Chunks of logits."""

    tokens: int
    """Of a chunk, at most."""
    row_multiple: int = 1
    """Elements that the length of a row in memory is a multiple of."""
    fused: bool = False
    """Whether everything between the products is one kernel (`pretrain/losses/fused_loss.py`), which works in place."""
    wide: bool = False
    """Whether products of bf16 and fp16 are given out in float32."""

    def row(self, vocabulary: int) -> int:
        """Elements from one row of a chunk to the next."""
        return -(-vocabulary // self.row_multiple) * self.row_multiple

    def chunks(self, tokens: int) -> list[slice]:
        """The chunks of `tokens` tokens: as few as possible, and of those as even as possible."""
        count = -(-tokens // self.tokens)
        step = -(-tokens // max(1, count))
        return [slice(start, min(start + step, tokens)) for start in range(0, tokens, max(1, step))]

    def parts(self, vocabulary: int) -> list[slice]:
        """The columns of a chunk whose number is a multiple of `row_multiple`, and the rest, where there are any."""
        whole = vocabulary // self.row_multiple * self.row_multiple
        return [part for part in (slice(0, whole), slice(whole, vocabulary)) if part.start < part.stop]


def choose_layout(
    device_type: str, memory: float | None, vocabulary: int, chunk_elements: int | None, fused: bool, wide: bool
) -> LossLayout:
    """The layout on a device, whether it is there or only planned for.

    Args:
        device_type: such as cpu or cuda.
        memory: bytes of the device; None where it does not say.
        vocabulary: V.
        chunk_elements: logits that may exist at one time; None takes the rule above.
        fused: whether there is a kernel for the device and the type.
        wide: whether the device's products of low precision come out in float32.
    """
    on_cpu = device_type in ("cpu", "meta")
    layout = LossLayout(1, 1 if on_cpu else ROW_MULTIPLE, fused, wide)
    row = layout.row(vocabulary)
    if chunk_elements is not None:
        tokens = chunk_elements // row
    elif on_cpu:
        tokens = CPU_ELEMENTS // row
    else:
        fitting = int(UNKNOWN_MEMORY if memory is None else memory) // MEMORY_SHARE // row
        tokens = min(DEVICE_TOKENS, 1 << max(0, fitting.bit_length() - 1))
    return replace(layout, tokens=max(1, tokens))


def layout_on(device: torch.device, dtype: torch.dtype, vocabulary: int, chunk_elements: int | None) -> LossLayout:
    """The layout for tensors of `dtype` on `device`, which may be a pretended one (fake tensors)."""
    on_cuda = device.type == "cuda"
    fused, wide = on_cuda and dtype in FUSED_TYPES and has_triton(), on_cuda and torch.version.hip is None
    return choose_layout(device.type, device_memory(device), vocabulary, chunk_elements, fused, wide)


def describe_layout(weight_VD: Tensor, vocabulary: int, tokens: int, chunk_elements: int | LossLayout | None) -> str:
    """How a micro-batch of `tokens` tokens goes through the head `weight_VD` of `vocabulary` pieces, for a log."""
    layout = chunk_elements
    if not isinstance(layout, LossLayout):
        layout = layout_on(weight_VD.device, weight_VD.dtype, vocabulary, layout)
    chunks = layout.chunks(tokens)
    how = "one fused kernel between the products" if layout.fused else "eager"
    return f"{tokens:,} tokens in {len(chunks):,} chunk(s) of at most {layout.tokens:,}, {how}"


def device_memory(device: torch.device) -> int | None:
    """Bytes of all of an accelerator's memory, from its properties; None for a CPU, a pretended or a silent device."""
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    if not module.is_available() or not hasattr(module, "get_device_properties"):
        return None
    return int(module.get_device_properties(device).total_memory)


@cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's builds for CUDA on Linux bring it."""
    return find_spec("triton") is not None
