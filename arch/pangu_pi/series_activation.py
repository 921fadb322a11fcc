"""The series activation (PanGu-pi Eq. 7) on the gate path of SwiGLU, and what it keeps for backward.

    act  = sum of sigma_i(a_i * v + b_i) over i = 1..n          v: the gate projection
    out  = act * u                                              u: the up projection

a_i and b_i are learned, one pair per term and channel (or per term). The sum costs n activations and n multiply-adds
per channel, which is memory traffic and not arithmetic. Two ways to compute it, equal up to rounding:

* `gated_series`, the formula itself, under `torch.compile`, which fuses it into one kernel each way and recomputes the
  terms in backward because that costs no memory traffic.
* Eager training would write and keep 2n + 1 tensors of FFN width. `_GatedSeries` keeps v and u, which the linear layers
  own anyway, recomputes the terms in backward, and works on blocks of rows, on a CPU on such as stay in cache.

Both compute in at least float32, whatever the type of v and u: a fused kernel has its intermediate values in registers
and rounds each result once, so the eager form must not round every term. float32 exists for one block at a time and is
never kept. Gradients of scale and bias are summed in float32 over all tokens and rounded at the end.

Shape suffixes: N tokens (leading dimensions, flattened), F FFN width, R rows of one block, M learned terms (n, or n - 1
when the first is plain), C = F or 1, the channels that have a scale of their own.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

DRAWN_STD = 0.02  # of the scales that do not start at a constant (VanillaNet's)
BLOCK_ELEMENTS = 1 << 18  # of a CPU block: a handful of float32 tensors of this size fit the last-level cache
DEVICE_BLOCK_ELEMENTS = 1 << 24  # elsewhere: 64 MiB in float32 each, for which a kernel takes ten times its launch


def _silu(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sigmoid = torch.sigmoid(z)
    value = z * sigmoid
    return value, (sigmoid + value).addcmul_(value, sigmoid, value=-1)


def _gelu(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cdf = torch.erf(z * math.sqrt(0.5)).add_(1).mul_(0.5)
    density = torch.exp(-0.5 * z.square()).div_(math.sqrt(2 * math.pi))
    return z * cdf, torch.addcmul(cdf, z, density)


def _gelu_tanh(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rate, cubic = math.sqrt(2 / math.pi), 0.044715
    tanh = torch.tanh(rate * (z + cubic * z.pow(3)))
    half = 0.5 * (1 + tanh)
    return z * half, half + 0.5 * z * (1 - tanh.square()) * rate * (1 + 3 * cubic * z.square())


def _relu(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.relu(z), (z > 0).to(z.dtype)


def _tanh(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value = torch.tanh(z)
    return value, 1 - value.square()


Activation = Callable[[torch.Tensor], torch.Tensor]
ValueAndSlope = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# By name: sigma, and (sigma, sigma') from one evaluation of the costly function.
ACTIVATIONS: dict[str, tuple[Activation, ValueAndSlope]] = {
    "silu": (nn.functional.silu, _silu),
    "swish": (nn.functional.silu, _silu),
    "gelu": (nn.functional.gelu, _gelu),
    "gelu_pytorch_tanh": (lambda z: nn.functional.gelu(z, approximate="tanh"), _gelu_tanh),
    "relu": (nn.functional.relu, _relu),
    "tanh": (torch.tanh, _tanh),
}


def gated_series(
    v: torch.Tensor, u: torch.Tensor, scale_MC: torch.Tensor, bias_MC: torch.Tensor, names: tuple[str, ...]
) -> torch.Tensor:
    """`(sum of sigma_i(a_i v + b_i)) * u`, [..., F] in u's dtype. The first n - M terms have a = 1, b = 0.

    It is computed in at least float32 and rounded once.
    """
    dtype, act = _computing_dtype(v), None
    for _, name, z in _terms(v.to(dtype), scale_MC.to(dtype), bias_MC.to(dtype), names):
        value = ACTIVATIONS[name][0](z)
        act = value if act is None else act + value
    return (act * u).to(u.dtype)


def _computing_dtype(v: torch.Tensor) -> torch.dtype:
    """float32, or float64 where that is given."""
    return torch.promote_types(v.dtype, torch.float32)


def _terms(
    v: torch.Tensor, scale_MC: torch.Tensor, bias_MC: torch.Tensor, names: tuple[str, ...]
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """The n terms: (row of the learned scale or negative, activation name, a_i v + b_i)."""
    plain = len(names) - len(scale_MC)
    if plain:
        yield -1, names[0], v
    for row, (scale_C, bias_C) in enumerate(zip(scale_MC.unbind(), bias_MC.unbind(), strict=True)):
        yield row, names[plain + row], torch.addcmul(bias_C, v, scale_C)


def _blocks(v_NF: torch.Tensor) -> list[slice]:
    """Rows to process together: their float32 values stay in cache on a CPU, and take little memory elsewhere."""
    tokens, features = v_NF.shape
    elements = BLOCK_ELEMENTS if v_NF.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    rows = max(1, elements // features)
    return [slice(start, start + rows) for start in range(0, tokens, rows)]


def _by_blocks(
    v_NF: torch.Tensor, u_NF: torch.Tensor, scale_MC: torch.Tensor, bias_MC: torch.Tensor, names: tuple[str, ...]
) -> torch.Tensor:
    """`gated_series`, block by block."""
    out_NF = torch.empty_like(u_NF)
    for rows in _blocks(v_NF):
        out_NF[rows] = gated_series(v_NF[rows], u_NF[rows], scale_MC, bias_MC, names)
    return out_NF


class _GatedSeries(torch.autograd.Function):
    """`gated_series` that saves v and u only, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        v_NF: torch.Tensor,
        u_NF: torch.Tensor,
        scale_MC: torch.Tensor,
        bias_MC: torch.Tensor,
        names: tuple[str, ...],
    ) -> torch.Tensor:
        ctx.save_for_backward(v_NF, u_NF, scale_MC, bias_MC)
        ctx.names = names
        return _by_blocks(v_NF, u_NF, scale_MC, bias_MC, names)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NF: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        v_NF, u_NF, *given_MC = ctx.saved_tensors
        dtype = _computing_dtype(v_NF)
        scale_MC, bias_MC = (tensor.to(dtype) for tensor in given_MC)
        grad_v_NF, grad_u_NF = torch.empty_like(v_NF), torch.empty_like(u_NF)
        grad_scale_MC, grad_bias_MC = torch.zeros_like(scale_MC), torch.zeros_like(bias_MC)
        for rows in _blocks(v_NF):
            grad_RF, v_RF = grad_NF[rows].to(dtype), v_NF[rows].to(dtype)
            grad_act_RF = grad_RF * u_NF[rows]
            act_RF = grad_v_RF = None
            for row, name, z_RF in _terms(v_RF, scale_MC, bias_MC, ctx.names):
                value_RF, slope_RF = ACTIVATIONS[name][1](z_RF)
                act_RF = value_RF if act_RF is None else act_RF.add_(value_RF)
                grad_z_RF = slope_RF.mul_(grad_act_RF)
                if row < 0:
                    grad_v_RF = grad_z_RF if grad_v_RF is None else grad_v_RF.add_(grad_z_RF)
                    continue
                scale_C = scale_MC[row]
                grad_v_RF = grad_z_RF * scale_C if grad_v_RF is None else grad_v_RF.addcmul_(grad_z_RF, scale_C)
                grad_bias_MC[row] += grad_z_RF.sum_to_size(scale_C.shape)
                grad_scale_MC[row] += grad_z_RF.mul_(v_RF).sum_to_size(scale_C.shape)
            grad_v_NF[rows], grad_u_NF[rows] = grad_v_RF, grad_RF * act_RF
        given = [g.to(t.dtype) for g, t in zip((grad_scale_MC, grad_bias_MC), given_MC, strict=True)]
        return grad_v_NF, grad_u_NF, *given, None


class SeriesActivation(nn.Module):
    """`(sum of sigma_i(a_i * v + b_i)) * u` with learned a, b (Eq. 7, gated as in SwiGLU).

    Args:
        features: F, the FFN width.
        activations: the n >= 2 names of the base functions (keys of `ACTIVATIONS`).
        scope: `"channel"` for one scale and bias per term and channel, `"scalar"` for one per term.
        learn_first: whether term 1 has a scale and bias too; otherwise it is sigma_1(v).
        init: `"identity"` or `"trunc_normal"`, see `PanguPiConfig.series_init`.
        init_seed: seed of what the initialisation draws.
    """

    def __init__(
        self,
        features: int,
        activations: list[str],
        scope: str = "channel",
        learn_first: bool = True,
        init: str = "identity",
        init_seed: int = 0,
    ) -> None:
        super().__init__()
        self.activations = tuple(activations)
        self.plain_terms = 0 if learn_first else 1
        self.init, self.init_seed = init, init_seed
        shape = (len(activations) - self.plain_terms, features if scope == "channel" else 1)
        self.scale = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))

    def forward(self, v_BSF: torch.Tensor, u_BSF: torch.Tensor) -> torch.Tensor:
        """Map the gate and up projections, [..., F] each, to their gated product in u's dtype."""
        if torch.compiler.is_compiling():
            return gated_series(v_BSF, u_BSF, self.scale, self.bias, self.activations)
        v_NF, u_NF = v_BSF.flatten(0, -2), u_BSF.flatten(0, -2)
        compute = _GatedSeries.apply if torch.is_grad_enabled() else _by_blocks
        return compute(v_NF, u_NF, self.scale, self.bias, self.activations).view_as(u_BSF)

    def initial_scale(self) -> torch.Tensor:
        """The scales [M, C] at step 0; the biases start at 0."""
        scale_MC = torch.zeros(self.scale.shape, device="cpu")
        generator = torch.Generator().manual_seed(self.init_seed)
        unusable_at_zero = {"relu"}  # no slope at 0: a zero scale would never move
        for i, name in enumerate(self.activations):
            if i == 0:
                if not self.plain_terms:
                    scale_MC[0] = 1.0
                continue
            row_C = scale_MC[i - self.plain_terms]
            if self.init == "trunc_normal":
                nn.init.trunc_normal_(row_C, std=DRAWN_STD, generator=generator)
            elif name in unusable_at_zero:
                nn.init.normal_(row_C, std=DRAWN_STD, generator=generator)
            unusable_at_zero.add(name)  # a second zero term of the same function would stay equal to the first
        return scale_MC

    def extra_repr(self) -> str:
        return f"activations={list(self.activations)}, scale={tuple(self.scale.shape)}"


__all__ = ["ACTIVATIONS", "SeriesActivation", "gated_series"]
