"""What the loss moves through a GPU's memory, counted operator by operator on fake tensors at PanGu-pi's vocabulary.

Every operator reads its operands and writes its results once, which is the least that it can do; the fused kernel reads
the logits twice. Nothing here is a time.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.losses.chunked_cross_entropy import CrossEntropy, linear_loss
from pretrain.losses.loss_layout import LossLayout, choose_layout
from pretrain.losses.token_distillation import Distillation, DistillationConfig

N, D, V = 8192, 2048, 100_883
CPU_CHUNKS = LossLayout(2**22 // V)
"""How the loss was cut on every device before it looked at the device: 41 tokens."""
H100_CHUNKS = choose_layout("cuda", 80e9, V, None, fused=True, wide=True)
FLOPS, BANDWIDTH = 989e12, 3.35e12
"""An H100's dense bf16 and memory (SXM, data sheet)."""
READS = {"tinypi.token_losses": 2, "aten.new_zeros": 0}
"""How often an operator reads its operands, where that is not once."""
WRITES_ONLY = ("copy_", "zero_", "fill_")


class Traffic(TorchDispatchMode):
    """Bytes moved by products with the head (and sums of them), bytes moved by what lies between, and operations."""

    def __init__(self) -> None:
        super().__init__()
        self.head = self.between = self.flops = 0
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), str(func.overloadpacket)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not made or func.is_view or "empty" in name:
            return result
        self.operators[name] += 1
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        given.update(kwargs or {})
        read, written = [], []
        for argument in func._schema.arguments:
            tensor = given.get(argument.name)
            if isinstance(tensor, Tensor):
                changed = argument.alias_info is not None and argument.alias_info.is_write
                written += [tensor] * changed
                replaced = changed and (argument.name == "out" or name.endswith(WRITES_ONLY) or given.get("beta") == 0)
                read += [tensor] * (READS.get(name, 1) * (not replaced))
        written += [tensor for tensor in made if all(tensor is not one for one in written)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in read + written)
        product = name.startswith(("aten.mm", "aten.addmm"))
        if product or any(tensor.shape[-1:] == (D,) for tensor in made):
            self.head += size
        else:
            self.between += size
        if product:
            left, right = [tensor for tensor in read if tensor.ndim == 2][-2:]
            self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return result

    @property
    def least_seconds(self) -> float:
        """On an H100, by arithmetic: products take what is longer, their operations or their bytes."""
        return max(self.flops / FLOPS, self.head / BANDWIDTH) + self.between / BANDWIDTH


def count(layout: LossLayout | None, teacher: bool = False, tokens: int = N) -> Traffic:
    """The forward pass, which forms both gradients, in bf16 on a device that is not there."""
    with FakeTensorMode():
        hidden, weight = (
            torch.empty(*shape, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for shape in ((1, tokens), (V,))
        )
        truth = CrossEntropy(torch.zeros(1, tokens, dtype=torch.int64, device="cuda"))
        criterion = Distillation(truth, hidden.detach(), weight.detach(), DistillationConfig()) if teacher else truth
        with Traffic() as traffic:
            linear_loss(hidden, weight, criterion, layout)
    return traffic


@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "teacher"])
def test_the_loss_of_a_device_is_bound_by_its_products(teacher):
    """On an H100, at least: 0.2 s before and 12 ms now for 8,192 tokens, of which products take 10 ms (arithmetic)."""
    few = 20 * CPU_CHUNKS.tokens  # of which a token costs what each of many costs
    before, after = count(CPU_CHUNKS, teacher, few), count(H100_CHUNKS, teacher)
    assert after.flops / N == before.flops / few
    assert before.least_seconds > 15 * before.flops / FLOPS and after.least_seconds < 1.2 * after.flops / FLOPS
    assert before.head / few > 50 * after.head / N
    # student alone: read, read, write; a teacher's logits are read twice. The rest is what is kept of a token.
    kept = 200 * N
    assert after.between <= (10 if teacher else 6) * N * V + kept
    assert before.between >= (150 if teacher else 40) * few * V


def test_operators_grow_with_chunks_and_not_with_anything_else():
    one, two = count(H100_CHUNKS, tokens=4096).operators, count(H100_CHUNKS, tokens=8192).operators
    assert (one["tinypi.token_losses"], two["tinypi.token_losses"]) == (1, 2)
    slabs = -(-(V // 64 * 64) // (2**23 // D)) + 1
    # logits and d hidden in two parts each; d weight in two at first, then in slabs that stay in the device's cache
    assert (one["aten.mm"], two["aten.mm"]) == (6, 6 + 4 + slabs)


def test_without_a_number_the_device_decides():
    """A pretended device that does not say what it has."""
    assert count(None, tokens=4096).operators["tinypi.token_losses"] == 2
