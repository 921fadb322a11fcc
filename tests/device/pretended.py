"""Tensors that say they are on a CUDA device and are not, so that the CUDA path of a program runs on any machine.

    with PretendedDevice() as device:
        model = device.move(model.bfloat16())
        loss = task.loss(model, {name: tensor.to("cuda") for name, tensor in batch.items()}).total
        loss.backward()
    print(device.seen.report())

A `PretendedTensor` holds an ordinary CPU tensor and reports `cuda:0`. Every operator passes through it, which

* raises what CUDA raises where a tensor of the device meets one of the host;
* computes on the host in the very same types, so that wrong types raise and every number is real: code that reads a
  value of the device gets it, and the wait is written down with its line;
* notes operators, the tensors they make, and the attention kernel that CUDA would choose.

torch's own fake tensors know devices and shapes only. They stop at the first `int(tensor)`, have no backward pass in a
build with CUDA on a machine without, and see no numbers. What this cannot see, as they cannot, is everything inside a
kernel of CUDA: its memory, its order of summation, its time. For autograd and the C++ side the tensors are those of a
CPU, so composite operators are taken apart as on a CPU, except for attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.device.attention_kernels import MATH, sdpa_kernel
from tests.device.loss_kernels import STAND_INS
from tests.device.observations import Observations

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.allclose}
"""Operators that hand a value to the host."""
SIZED_BY_VALUE = {
    *(aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount),
    *(aten.repeat_interleave, aten.histc, aten.linalg_solve_ex, aten.linalg_cholesky_ex),
}
"""Operators that wait for the device before they know their result's size or success."""
MOVES = {aten.copy_, aten._to_copy}
"""Operators that may take a tensor from each side."""
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""Operators whose indices may lie on the host, from where they are copied with a wait."""
FROM_HOST_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.scalar_tensor)
"""Functions that copy values of the host onto a device, with a wait."""


class PretendedTensor(Tensor):
    """A tensor of the host that says it is on `cuda:0`."""

    value: Tensor
    watcher: Observations

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor, watcher: Observations) -> PretendedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device=value.device
        )
        made.value, made.watcher = value, watcher
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.value!r}, device='cuda:0')"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        seen = next(leaf.watcher for leaf in leaves if isinstance(leaf, PretendedTensor))
        packet = func.overloadpacket
        _check_devices(func, leaves, args, seen)
        if packet in READS or packet in SIZED_BY_VALUE:
            seen.wait(str(packet))
        elif packet in INDEXED and _reads_a_mask(packet, args):
            seen.wait(f"{packet} by a mask")
        values, named = tree_map(lambda leaf: leaf.value if isinstance(leaf, PretendedTensor) else leaf, (args, kwargs))
        result = STAND_INS.get(func, func)(*values, **named)
        if (changed := _changed(func, args, kwargs)) is not None:
            seen.operators[str(packet)] += 1
            return changed
        if not func.is_view:
            seen.operators[str(packet)] += 1
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    seen.made(tuple(leaf.shape), leaf.dtype)
        return tree_map(lambda leaf: PretendedTensor(leaf, seen) if isinstance(leaf, Tensor) else leaf, result)


def _check_devices(func: Any, leaves: list[Tensor], args: tuple[Any, ...], seen: Observations) -> None:
    """Raises what CUDA raises for operands of both sides. Scalars of the host are welcome everywhere."""
    host = [leaf for leaf in leaves if not isinstance(leaf, PretendedTensor) and leaf.dim() > 0]
    if not host:
        return
    packet = func.overloadpacket
    if packet in MOVES:
        seen.wait(f"{packet} from the host")
        return
    if packet in INDEXED and isinstance(args[0], PretendedTensor):
        indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        if all(any(one is index for index in indices) for one in host):
            seen.wait(f"{packet} by indices of the host")
            return
    shapes = ", ".join(str(list(leaf.shape)) for leaf in host)
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({packet}; "
        f"on the host: {shapes})"
    )


def _reads_a_mask(packet: Any, args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask that is first turned into numbers, which waits for their count.

    `x[mask] = number` is not: torch makes such a number on the host where x is on the device, and then index_put fills
    under the mask (`canDispatchToMaskedFill` in aten's TensorAdvancedIndexing.cpp).
    """
    kinds = (torch.bool, torch.uint8)
    masks = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor) and leaf.dtype in kinds]
    assigns = packet not in (aten.index, aten._unsafe_index)
    return bool(masks) and not (assigns and args[2].dim() == 0)


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument that an operator returns because it has changed it; None for an operator that makes a new tensor."""
    schema = func._schema
    if not schema.is_mutable or (schema.returns and schema.returns[0].alias_info is None):
        return None
    names = [argument.name for argument in schema.arguments]
    written = [
        kwargs[argument.name] if argument.name in kwargs else args[names.index(argument.name)]
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if len(schema.returns) == len(written) == 1:
        return written[0]
    return tuple(written) if len(schema.returns) == len(written) else None


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: PretendedTensor) -> Tensor:
        ctx.watcher = tensor.watcher
        return tensor.value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return PretendedTensor(gradient, ctx.watcher)


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, watcher: Observations) -> Tensor:
        return PretendedTensor(tensor.detach().clone(), watcher)

    @staticmethod
    def backward(ctx: Any, gradient: PretendedTensor) -> tuple[Tensor, None]:
        return gradient.value, None


class _Made(TorchDispatchMode):
    """Puts what a composite operator makes for a tensor of the device beside it; to C++ that tensor is of the host."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.device.inside and not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            return tree_map(self.device._wrap, result)
        return result


class PretendedDevice(TorchFunctionMode):
    """Inside of `with`, `cuda` is a device that tensors can be made on and moved to.

    `seen` holds what has happened so far; `watching()` starts it anew for the body of a `with`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = Observations()
        self.inside = 0
        """How many calls with a tensor of the device are on the stack."""
        self._made: list[_Made] = []
        self._in_kernel = 0

    def __enter__(self) -> PretendedDevice:
        self._overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `parameter.data = ...` would stay what it is
        self._made.append(_Made(self))
        self._made[-1].__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.pop().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrites)

    def move(self, module: nn.Module) -> nn.Module:
        """Moves a module's parameters and buffers, in place; returns it. Unlike `to` here, it keeps ties."""
        moved: dict[Tensor, Tensor] = {}
        with self, torch.no_grad():
            for part in module.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        if parameter not in moved:
                            moved[parameter] = nn.Parameter(parameter.to(CUDA), parameter.requires_grad)
                        part._parameters[name] = moved[parameter]  # type: ignore[assignment]
                for name, buffer in part._buffers.items():
                    part._buffers[name] = None if buffer is None else buffer.to(CUDA)
        return module

    @contextmanager
    def watching(self) -> Iterator[Observations]:
        """Observations of the body alone."""
        before, fresh = Observations(**vars(self.seen)), Observations()
        vars(self.seen).update(vars(fresh))  # the tensors hold this object
        try:
            yield fresh
        finally:
            vars(self.seen).update(vars(before))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._move(func, args, kwargs)
        if isinstance(args[0] if args else None, PretendedTensor):
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
            if func is Tensor.tolist:
                self.seen.wait("tolist")
                return args[0].value.tolist()
            if func is Tensor.new_tensor:
                self.seen.wait("new_tensor")
                return self._wrap(func(args[0].value, *args[1:], **_on_host(kwargs)))
        if func is nn.functional.scaled_dot_product_attention:
            return self._attend(args, kwargs)
        if func is Tensor.pin_memory:
            return args[0]
        if kwargs.get("device") is None or func is torch._C._nn._parse_to:
            here = any(isinstance(leaf, PretendedTensor) for leaf in tree_leaves((args, kwargs)))
            self.inside += here
            try:
                return func(*args, **kwargs)
            finally:
                self.inside -= here
        if torch.device(kwargs["device"]).type == "cuda":
            if func in FROM_HOST_DATA:
                self.seen.wait(getattr(func, "__name__", str(func)))
            return self._wrap(func(*args, **_on_host(kwargs)))
        result = func(*args, **kwargs)
        return result.value if isinstance(result, PretendedTensor) else result

    def _wrap(self, result: Any) -> Any:
        """A new tensor, made on this device. Whether it needs a gradient stays."""
        if not isinstance(result, Tensor) or isinstance(result, PretendedTensor):
            return result
        self.seen.made(tuple(result.shape), result.dtype)
        wrapped = PretendedTensor(result.detach(), self.seen)
        return wrapped.requires_grad_() if result.requires_grad else wrapped

    def _move(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        tensor, rest = args[0], args[1:]
        dtype, non_blocking, layout = None, kwargs.get("non_blocking", False), kwargs.get("memory_format")
        if func is Tensor.to:
            rest, kwargs = _like(rest, kwargs)
            target, dtype, non_blocking, layout = torch._C._nn._parse_to(
                *rest, **{name: value for name, value in kwargs.items() if name != "copy"}
            )
        else:
            target = torch.device("cpu") if func is Tensor.cpu else CUDA
        if target is not None:
            here = isinstance(tensor, PretendedTensor)
            if target.type == "cuda" and not here:
                if not non_blocking:
                    self.seen.wait("copy to the device")
                tensor = _ToDevice.apply(tensor, self.seen) if tensor.requires_grad else self._wrap(tensor.clone())
            elif target.type == "cpu" and here:
                if not non_blocking:
                    self.seen.wait("copy to the host")
                tensor = _ToHost.apply(tensor)
        options = {"dtype": dtype, "memory_format": layout, "copy": kwargs.get("copy")}
        given = {name: value for name, value in options.items() if value is not None}
        return Tensor.to(tensor, **given) if given.keys() & {"dtype", "memory_format"} else tensor

    def _attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        call = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
        if self._in_kernel:
            return self._inside(nn.functional.scaled_dot_product_attention, call)
        kernel = sdpa_kernel(**call)
        if (mask := call.get("attn_mask")) is not None:
            self.seen.masks[tuple(mask.shape)] += 1
        if kernel == MATH:
            self.seen.attention[kernel] += 1
            query, key = call["query"], call["key"]
            self.seen.made((*query.shape[:-1], key.shape[-2]), query.dtype)  # the scores, whatever the host does
            return self._inside(nn.functional.scaled_dot_product_attention, call)
        return self.kernel(kernel, self._inside, nn.functional.scaled_dot_product_attention, call)

    def _inside(self, func: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Calls a composite function, whose own new tensors are on this device."""
        self.inside += 1
        try:
            return func(**call)
        finally:
            self.inside -= 1

    def kernel(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function that stands for one fused kernel of attention: nothing of its inside is written down."""
        with self.watching():
            self._in_kernel += 1
            try:
                result = function(*args, **kwargs)
            finally:
                self._in_kernel -= 1
        self.seen.attention[name] += 1
        self.seen.operators[name] += 1
        return result


def _on_host(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}


def _like(rest: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`to(other)` as `to(device, dtype)`."""
    if rest and isinstance(rest[0], Tensor):
        return (rest[0].device, rest[0].dtype, *rest[1:]), kwargs
    return rest, kwargs
