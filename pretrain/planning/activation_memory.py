"""What a forward and a backward pass keep in memory, found by running them without numbers.

    model and batch on torch's meta device -> forward, backward -> every storage that appears and disappears is counted

A meta tensor has a shape and no memory, so a pass of any size costs seconds and no bytes. Nothing is known about the
model: whatever its forward pass saves for backward, its casts, masks, logits and temporaries are those of the very code
that trains. Three things a pass without numbers cannot have are given to it here:

* Attention. On a device, torch fuses `scaled_dot_product_attention`; on meta it would write the S x S scores. Here it
  keeps what the fused kernels keep: query, key, value, the mask as numbers, the output in the layout [B, S, H, D], and
  one float32 per query (FlashAttention, arXiv 2205.14135). Attention that is asked for otherwise (`eager`) has scores.
* Values. A single number that is read from a tensor is 0 (whether a row holds one document: no).
* Where a task copies whole tensors to the host, the pass runs for real, on a CPU, with one and with two samples, and is
  continued on the line through both. This alone allocates the model.

Kernels' own workspaces, the allocator's rounding and libraries are not seen.

Shapes: B batch, H heads, S sequence, D width of a head.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from data_pipeline.loader import Batch
from pretrain.errors import ConfigurationError
from pretrain.tasks.base import Task, TaskModule

aten = torch.ops.aten


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of one micro-batch on one rank, weights not counted."""

    kept: float
    """What lives between forward and backward: activations, and gradients that the loss has formed already."""
    peak: float
    """The most that ever lives, gradients of parameters not counted."""
    peak_with_gradients: float
    """The same with gradients of parameters, which grow while activations go."""
    gradients_at_peak: float
    """The gradients of parameters in `peak_with_gradients`."""
    logits: float
    """The most that ever lives in tensors whose rows are as long as those of logits."""

    def continued(self, two: ActivationMemory, size: int) -> ActivationMemory:
        """The micro-batch of `size` samples on the line through one sample (this) and two."""
        lines = {f.name: (getattr(self, f.name), getattr(two, f.name)) for f in fields(self)}
        return ActivationMemory(**{name: one + (size - 1) * (both - one) for name, (one, both) in lines.items()})


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of storages while they live. Those of `outside` (weights, batch) are left out."""

    def __init__(self, outside: list[Tensor], vocabulary: int | None = None) -> None:
        super().__init__()
        self._vocabulary, self._operators = vocabulary, BlankOperators()
        self._kinds: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """By storage, a list of one kind, which may change."""
        for tensor in outside:
            self._kinds[tensor.untyped_storage()] = ["outside"]
        self.live = {"other": 0, "logits": 0, "gradient": 0}
        self.peak = self.peak_with_gradients = self.gradients_at_peak = self.peak_logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._operators(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._kinds:
            return
        kind = ["logits" if tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary else "other"]
        self._kinds[storage] = kind
        self.live[kind[0]] += storage.nbytes()
        weakref.finalize(storage, self._forget, kind, storage.nbytes())
        without, gradients = self.live["other"] + self.live["logits"], self.live["gradient"]
        self.peak, self.peak_logits = max(self.peak, without), max(self.peak_logits, self.live["logits"])
        if without + gradients > self.peak_with_gradients:
            self.peak_with_gradients, self.gradients_at_peak = without + gradients, gradients

    def _forget(self, kind: list[str], size: int) -> None:
        self.live[kind[0]] -= size

    def gradient_is_final(self, parameter: Tensor) -> None:
        """What has become `parameter.grad` counts as a gradient from now on."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        kind = self._kinds[storage]
        self.live[kind[0]] -= storage.nbytes()
        kind[0] = "gradient"
        self.live["gradient"] += storage.nbytes()


class BlankOperators:
    """Operators on tensors without values: they give shapes only, and what would read a number reads 0.

    Shapes of operators that neither write nor alias are remembered, because torch finds them in slow Python, and the
    layers of a model and the chunks of a loss ask for the same ones again and again.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None or not first.is_meta:
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return torch.zeros((), dtype=first.dtype).item()
        if (device := kwargs.get("device")) is not None and torch.device(device).type != "meta":
            raise NotImplementedError(f"{func} wants values")
        schema = func._schema
        if any(argument.alias_info is not None for argument in schema.arguments):
            in_place = schema.name.endswith("_") and len(schema.returns) == 1
            return first if in_place and torch.Tag.pointwise in func.tags else func(*args, **kwargs)
        key = (func, *map(_signature, tree_leaves((args, kwargs), is_leaf=lambda leaf: leaf is None)))
        if key not in self._known:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                self._known[key] = result.shape, result.stride(), result.dtype
            return result
        shape, stride, dtype = self._known[key]
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _signature(leaf: Any) -> Any:
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)


class _FusedAttention(torch.autograd.Function):
    """Keeps what torch's fused kernels keep; computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.empty(mask.shape, dtype=query.dtype, device=query.device)
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, mask, output, query.new_empty(batch, heads, length, dtype=torch.float))
        return output

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it, `scaled_dot_product_attention` of meta tensors is the fused kernel's, where there is one.

    A replaced function and not a TorchFunctionMode, which is not there while a checkpointed block is recomputed.
    """
    torchs = F.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        dropout = rest[0] if rest else options.get("dropout_p", 0.0)
        if query.is_meta and query.ndim == 4 and not dropout:
            return _FusedAttention.apply(query, key, value, attn_mask)
        return torchs(query, key, value, attn_mask, *rest, **options)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = torchs


def measure(
    task: Task, size: int, dtype: torch.dtype, checkpointing: bool, vocabulary: int | None = None
) -> tuple[ActivationMemory, str]:
    """The memory of one micro-batch, and how it was found.

    Args:
        task: what is trained; its model need not fit anywhere.
        size: samples of the micro-batch.
        dtype: of weights and activations.
        checkpointing: recompute every block in backward.
        vocabulary: length of a row of logits in memory, if the model has them.

    Raises:
        ConfigurationError: the model cannot be built, does not support checkpointing, or would have to run for real
            and is too large for this machine.
    """
    try:
        return _pass(task, size, dtype, checkpointing, vocabulary, "meta"), "a pass without numbers"
    except (NotImplementedError, RuntimeError) as error:  # needs values, or an operator without shapes
        _refuse_what_does_not_fit(task, error)
        one, two = (_pass(task, count, dtype, checkpointing, vocabulary, "cpu") for count in (1, 2))
        return one.continued(two, size), "passes of one and two samples on this CPU, continued"


def _pass(
    task: Task, size: int, dtype: torch.dtype, checkpointing: bool, vocabulary: int | None, device: str
) -> ActivationMemory:
    model = blank_model(task, device).to(dtype).train()
    try:
        task.prepare_model(model, checkpointing, compile_model=False)
    except ValueError as error:
        raise ConfigurationError(f"engine.activation_checkpointing: {error}") from None
    batch: Batch = {name: tensor.to(device) for name, tensor in task.example_batch(size).items()}
    counter = StorageCounter([*model.parameters(), *model.buffers(), *batch.values()], vocabulary)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(counter.gradient_is_final)
    with fused_attention(), counter:
        total = TaskModule(task, model)(batch).total
        kept = counter.live["other"] + counter.live["logits"]
        total.backward()
    return ActivationMemory(
        kept, counter.peak, counter.peak_with_gradients, counter.gradients_at_peak, counter.peak_logits
    )


def _refuse_what_does_not_fit(task: Task, reason: Exception) -> None:
    """Weights and their gradients are as large as the model in float32 each; more would swap or be killed."""
    needed = 2 * sum(4 * parameter.numel() for parameter in blank_model(task).parameters())
    free = psutil.virtual_memory().available
    if needed > free:
        first = next(iter(str(reason).splitlines()), type(reason).__name__)
        raise ConfigurationError(
            f"the forward pass cannot be followed without numbers ({first}), and to run it takes at least "
            f"{needed / 1e9:.1f} GB of memory, where {free / 1e9:.1f} GB are free; plan a smaller model of this shape"
        ) from reason


def blank_model(task: Task, device: str = "meta") -> nn.Module:
    """The task's model, in float32; on meta it has shapes and no memory."""
    with torch.device(device):
        return task.blank_model()
