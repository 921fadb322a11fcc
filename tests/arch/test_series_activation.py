"""The series activation, and how it computes: blocks, memory, precision."""

import pytest
import torch
from transformers.activations import ACT2FN

from arch.pangu_pi import SeriesActivation, series_activation
from arch.pangu_pi.configuration_pangu_pi import SERIES_ACTIVATIONS
from arch.pangu_pi.series_activation import ACTIVATIONS, gated_series

TOKENS, FEATURES = 12, 5


def module(names, dtype=torch.float64, **options) -> SeriesActivation:
    torch.manual_seed(0)
    series = SeriesActivation(FEATURES, list(names), **options).to(dtype)
    torch.nn.init.normal_(series.scale)
    torch.nn.init.normal_(series.bias)
    return series


def inputs(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return tuple(torch.randn(2, TOKENS // 2, FEATURES, dtype=dtype, requires_grad=True) for _ in "vu")


def naive(series: SeriesActivation, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Eq. 7 term by term with transformers' own activations, and SwiGLU's product."""
    total = torch.zeros_like(v)
    for i, name in enumerate(series.activations):
        row = i - series.plain_terms
        total += ACT2FN[name](v if row < 0 else series.scale[row] * v + series.bias[row])
    return total * u


@pytest.fixture(params=[1 << 18, 3 * FEATURES], ids=["one block", "blocks of three rows"])
def blocks(request, monkeypatch) -> None:
    monkeypatch.setattr(series_activation, "BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("scope", ["channel", "scalar"])
@pytest.mark.parametrize("learn_first", [True, False])
@pytest.mark.parametrize("names", [("silu", "silu"), ("gelu", "relu", "tanh"), ("gelu_pytorch_tanh", "swish")])
def test_matches_a_naive_loop_and_its_gradients(names, learn_first, scope):
    series = module(names, scope=scope, learn_first=learn_first)
    v, u = inputs()
    grad = torch.randn_like(v)
    parameters = [v, u, series.scale, series.bias]
    out = series(v, u)
    expected = naive(series, v, u)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for got, want in zip(
        torch.autograd.grad(out, parameters, grad), torch.autograd.grad(expected, parameters, grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("learn_first", [True, False])
@pytest.mark.parametrize("names", [("silu", "silu"), ("gelu", "tanh"), ("gelu_pytorch_tanh", "relu", "swish")])
def test_gradcheck(names, learn_first):
    series = module(names, learn_first=learn_first)
    v, u = inputs()

    def function(v, u, scale, bias):
        return torch.func.functional_call(series, {"scale": scale, "bias": bias}, (v, u))

    assert torch.autograd.gradcheck(function, (v, u, series.scale, series.bias))


def test_every_configurable_activation_exists_and_is_zero_at_zero():
    assert set(ACTIVATIONS) == set(SERIES_ACTIVATIONS)
    for activation, value_and_slope in ACTIVATIONS.values():
        assert activation(torch.zeros(1)) == 0 and value_and_slope(torch.zeros(1))[0] == 0


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_only_its_two_inputs_for_backward(dtype, compiled):
    series = module(["silu"] * 4, dtype=dtype)
    v, u = inputs(dtype)
    # the partitioner of torch's compiler, without its code generator
    forward = torch.compile(series, backend="aot_eager_decomp_partition") if compiled else series
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.update({x.data_ptr(): x.nbytes}) or x, lambda x: x):
        forward(v, u)
    parameters = 2 * series.scale.numel() * 4 if compiled else 2 * series.scale.nbytes  # which are small
    assert sum(kept.values()) == v.nbytes + u.nbytes + parameters


@pytest.mark.parametrize("scope", ["channel", "scalar"])
@pytest.mark.parametrize("names", [("silu", "silu", "silu", "silu"), ("gelu", "gelu_pytorch_tanh", "tanh", "relu")])
def test_bfloat16_errs_by_rounding_each_result_once(names, scope, monkeypatch):
    """With u = 2^-8, the unit roundoff of bf16, each result is within u of the exact one, as a fused kernel's is.

    The rest is float32's: at most `steps` roundings of 2^-24 of the sum of the absolute terms, in which |sigma| <= |z|
    and |sigma'| <= 2, and for sums over tokens one more for each.
    """
    monkeypatch.setattr(series_activation, "BLOCK_ELEMENTS", 1 << 12)  # several blocks, whose sums are added up
    tokens, features, steps = 1500, 24, 64
    torch.manual_seed(3)
    series = SeriesActivation(features, list(names), scope=scope).bfloat16()
    torch.nn.init.normal_(series.scale)
    torch.nn.init.normal_(series.bias)
    v, u = ((2 * torch.randn(tokens, features)).bfloat16().requires_grad_() for _ in "vu")
    grad = torch.randn(tokens, features).bfloat16()
    out = series(v, u)
    got = [out, *torch.autograd.grad(out, [v, u, series.scale, series.bias], grad)]
    with torch.no_grad():
        frozen = series(v, u)
    assert torch.equal(out, frozen)

    exact = series.double()
    arguments = [v.detach().double().requires_grad_(), u.detach().double().requires_grad_(), exact.scale, exact.bias]
    truth = naive(exact, *arguments[:2])
    wanted = [truth, *torch.autograd.grad(truth, arguments, grad.double())]
    with torch.no_grad():
        v_, u_, scale, bias = (tensor.abs() for tensor in arguments)
        z = sum(1 + scale[row] * v_ + bias[row] for row in range(len(names)))
        slope = 2 * grad.abs() * u_ * (1 + z)
        along = [
            slope.sum(0) if scope == "channel" else slope.sum(),
            (slope * v_).sum(0 if scope == "channel" else None),
        ]
        sizes = [z * u_, slope * (scale.sum(0) + 1), grad.abs() * z, along[1], along[0]]
    for name, ours, theirs, size in zip(("out", "v", "u", "scale", "bias"), got, wanted, sizes, strict=True):
        roundings = steps + (tokens if name in ("scale", "bias") else 0)
        excess = (ours.double() - theirs).abs() - 2**-8 * theirs.abs() - roundings * 2**-24 * size
        assert excess.max() <= 0, f"{name}: {excess.max():.3g} above the bound"
        assert ours.dtype == torch.bfloat16


@pytest.mark.parametrize("parameter_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_is_finite_and_close_even_for_large_inputs(parameter_dtype):
    series = module(["silu", "gelu"], dtype=parameter_dtype)
    v = torch.linspace(-300, 300, TOKENS * FEATURES).view(TOKENS, FEATURES).bfloat16().requires_grad_()
    u = torch.ones_like(v, requires_grad=True)
    out = series(v, u)
    out.backward(torch.ones_like(out))
    assert out.dtype == torch.bfloat16 and v.grad.dtype == torch.bfloat16
    for tensor in (out, v.grad, u.grad, series.scale.grad, series.bias.grad):
        assert tensor.isfinite().all()
    torch.testing.assert_close(out.float(), naive(series.float(), v.float(), u.float()), rtol=0.03, atol=0.5)


def test_empty_input():
    series = module(["silu", "silu"])
    empty = torch.empty(0, FEATURES, dtype=torch.float64, requires_grad=True)
    series(empty, empty).sum().backward()
    assert series.scale.grad.abs().sum() == 0


def test_the_compiled_formula_is_the_eager_one():
    series = module(["silu", "gelu", "tanh"], learn_first=False)
    v, u = inputs()
    formula = gated_series(v.flatten(0, 1), u.flatten(0, 1), series.scale, series.bias, series.activations)
    torch.testing.assert_close(series(v, u), formula.view_as(v), rtol=0, atol=1e-14)


def train(series: SeriesActivation, steps: int = 10) -> torch.Tensor:
    """Fit the series to a target that it cannot reach with n identical terms; returns the scales."""
    torch.manual_seed(2)
    optimizer = torch.optim.Adam(series.parameters(), lr=0.05)
    v = torch.randn(64, FEATURES, dtype=torch.float64)
    target = torch.tanh(3 * v) - torch.relu(v - 1)
    for _ in range(steps):
        optimizer.zero_grad()
        (series(v, torch.ones_like(v)) - target).square().mean().backward()
        optimizer.step()
    return series.scale.detach()


def test_identical_terms_stay_identical_and_the_default_start_separates():
    twins = SeriesActivation(FEATURES, ["silu", "silu"]).double()
    torch.nn.init.constant_(twins.scale, 0.5)
    torch.nn.init.zeros_(twins.bias)
    scale = train(twins)
    assert torch.equal(scale[0], scale[1]) and not torch.equal(scale[0], torch.full_like(scale[0], 0.5))

    default = SeriesActivation(FEATURES, ["silu"] * 4).double()
    with torch.no_grad():
        default.scale.copy_(default.initial_scale())
        default.bias.zero_()
    assert (default.scale[0] == 1).all() and (default.scale[1] == 0).all()
    scale = train(default)
    for i in range(4):
        for j in range(i):
            assert (scale[i] != scale[j]).all(), f"terms {i} and {j} did not separate"
