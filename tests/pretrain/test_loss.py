"""Chunked linear cross-entropy against the plain one: values, gradients, ignored labels, token weights."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.losses import head_products
from pretrain.losses.chunked_cross_entropy import IGNORE_INDEX, CrossEntropy, linear_cross_entropy, linear_loss
from pretrain.losses.loss_layout import LossLayout, layout_on
from pretrain.planning.activation_memory import StorageCounter
from tests.device.loss_kernels import wide_product

B, S, D, V = 2, 37, 16, 101


def inputs(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, S, D, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, V, (B, S), generator=generator)
    labels[0, 3] = labels[1, -1] = IGNORE_INDEX
    return hidden, weight, labels


def plain(hidden, weight, labels):
    logits = (hidden @ weight.T).flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none").view_as(labels)


@pytest.mark.parametrize("chunk_elements", [1, V * 5, V * B * S, 2**22])
def test_equals_plain_cross_entropy_and_its_gradients(chunk_elements):
    hidden, weight, labels = inputs()
    expected = plain(hidden, weight, labels)
    wanted = torch.autograd.grad(expected.sum() * 0.37, (hidden, weight))
    total, losses = linear_cross_entropy(hidden, weight, labels, chunk_elements=chunk_elements)
    got = torch.autograd.grad(total * 0.37, (hidden, weight))
    torch.testing.assert_close(losses, expected.detach())
    assert losses[0, 3] == 0 and losses[1, -1] == 0 and not losses.requires_grad
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-6 * max(1.0, theirs.abs().max())


def test_token_weights_scale_loss_and_gradient():
    hidden, weight, labels = inputs(torch.float64)
    weights = torch.rand(B, S, dtype=torch.float64)
    wanted = torch.autograd.grad((plain(hidden, weight, labels) * weights).sum(), (hidden, weight))
    total, _ = linear_cross_entropy(hidden, weight, labels, weights, chunk_elements=V * 7)
    for ours, theirs in zip(torch.autograd.grad(total, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("weighted", "z_loss", "softcap"), [(False, 0.03, None), (True, 0.0, 5.0), (True, 0.03, 5.0)])
def test_z_loss_and_soft_cap_have_the_gradient_of_autograd(weighted, z_loss, softcap):
    hidden, weight, labels = inputs(torch.float64)
    weights = torch.rand(B, S, dtype=torch.float64) if weighted else None
    scale = (labels != IGNORE_INDEX) * (1.0 if weights is None else weights)
    logits = hidden @ weight.T
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    cross = plain(capped, torch.eye(V, dtype=torch.float64), labels)
    added = z_loss * capped.logsumexp(-1).square() * scale
    wanted = torch.autograd.grad((cross * scale + added).sum(), (hidden, weight))
    total, tokens = linear_loss(hidden, weight, CrossEntropy(labels, weights, True, z_loss, softcap), V * 7)
    torch.testing.assert_close(tokens["loss"], cross.detach())
    torch.testing.assert_close(tokens["objective"], (cross * scale + added).detach())
    assert ("z_loss" in tokens) == bool(z_loss)
    torch.testing.assert_close(tokens.get("z_loss", added.detach()), added.detach())
    for ours, theirs in zip(torch.autograd.grad(total, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_second_backward_is_refused_instead_of_wrong():
    total, _ = linear_cross_entropy(*inputs())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run it again before a second backward"):
        total.backward()


def test_without_gradients_only_losses_are_formed(monkeypatch):
    hidden, weight, labels = inputs()  # the weight requires a gradient, as that of a frozen model in training does
    assert weight.requires_grad
    with torch.no_grad(), monkeypatch.context() as patch:
        for name in ("addmm_", "exp_"):
            patch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("a gradient was formed"))
        total, losses = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(total, losses.sum())


def test_bfloat16_keeps_losses_in_float32():
    hidden, weight, labels = inputs(torch.bfloat16)
    total, losses = linear_cross_entropy(hidden, weight, labels)
    total.backward()
    assert losses.dtype == torch.float32 and weight.grad.dtype == torch.bfloat16 and weight.grad.isfinite().all()


def test_misfitting_shapes_are_named():
    hidden, weight, labels = inputs()
    with pytest.raises(ValueError, match=r"hidden \(2, 37, 16\), head \(101, 16\) and labels \(2, 5\)"):
        linear_cross_entropy(hidden, weight, labels[:, :5])


def test_no_tokens_have_no_loss_and_no_gradient():
    hidden, weight, labels = inputs()
    total, losses = linear_cross_entropy(hidden[:, :0], weight, labels[:, :0])
    total.backward()
    assert total == 0 and losses.shape == (B, 0) and not weight.grad.any()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_rows_and_wide_products_give_the_same(dtype, wide, monkeypatch):
    """The layout of a device, eagerly: rows of 112 for 101 pieces, of which 96 and 5 are multiplied apart."""

    def mm(left, right, out_dtype=None, out=None):
        assert left.dtype == right.dtype == dtype  # given out wide, not computed of anything else
        return torch_mm(left, right, out=out) if out_dtype is None else wide_product(left, right, out_dtype, out)

    torch_mm = torch.mm
    hidden, weight, labels = inputs(dtype)
    weights = torch.rand(B, S)
    expected = linear_cross_entropy(hidden, weight, labels, weights, LossLayout(B * S))
    wanted = torch.autograd.grad(expected[0], (hidden, weight))
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(head_products, "SLAB_ELEMENTS", 40 * D)  # slabs of 32 of the 96 rows
    total, losses = linear_cross_entropy(hidden, weight, labels, weights, LossLayout(11, 16, wide=wide))
    got = torch.autograd.grad(total, (hidden, weight))
    # bf16: a logit that is rounded the other way, because it was summed in another order, is off by 2^-8 of its size
    unit = 2**-20 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(losses, expected[1], rtol=4 * unit, atol=4 * unit * 4)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() <= 8 * unit * theirs.abs().max()


def representable(tokens=900, pieces=67, width=8):
    """Hidden states, head and labels in bf16 whose logits bf16 holds exactly, in whatever order they are summed."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randint(-1, 2, (1, tokens, width), generator=generator).bfloat16()
    hidden[..., 0] = 1  # so that the gradient of a frequent label grows and grows
    weight = (torch.randint(-4, 5, (pieces, width), generator=generator) / 8).bfloat16()
    labels = torch.randint(0, pieces, (1, tokens), generator=generator)
    labels[0, ::2] = 5
    return hidden.requires_grad_(), weight.requires_grad_(), labels


ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("where", ["cpu", "wide", pytest.param("cuda", marks=ON_A_GPU)])
def test_the_heads_gradient_in_bfloat16_errs_by_its_roundings_only(where, monkeypatch):
    """300 chunks. With u = 2^-8 and P the product of one chunk, each element of d weight errs by at most

        u sum |d logits * hidden|   the gradient of the logits is rounded for the product
        + u sum |P|                 each product is rounded, where it does not come out in float32
        + u |d weight|              the sum is rounded at the end
        + 2^-24 (chunks + 64) sum |d logits * hidden|    float32: the sum over chunks, and exponentials

    A sum over chunks in bf16 would be off by far more, which is shown too.
    """
    hidden, weight, labels = representable()
    if where == "wide":
        monkeypatch.setattr(torch, "mm", lambda left, right, out_dtype=None, out=None: (
            torch.matmul(left, right, out=out) if out_dtype is None else wide_product(left, right, out_dtype, out)
        ))  # fmt: skip
    layout = LossLayout(3, wide=where == "wide")
    if where == "cuda":
        layout = replace(layout_on(torch.device("cuda", 0), hidden.dtype, len(weight), None), tokens=3)
    device = where.replace("wide", "cpu")
    total, _ = linear_cross_entropy(hidden.to(device), weight.to(device), labels.to(device), chunk_elements=layout)
    total.backward()
    hidden_ND, weight_VD = hidden.detach()[0].double(), weight.detach().double()
    d_logits = (hidden_ND @ weight_VD.T).softmax(1) - F.one_hot(labels[0], len(weight))
    products = torch.stack([g.T @ h for g, h in zip(d_logits.split(3), hidden_ND.split(3), strict=True)])
    exact, terms = products.sum(0), d_logits.abs().T @ hidden_ND.abs()
    unit, single = 2**-8, 2**-24 * (len(products) + 64)
    bound = unit * (terms + exact.abs()) + single * terms + (unit * products.abs().sum(0) if where == "cpu" else 0)
    assert ((weight.grad.double() - exact).abs() <= bound).all()
    in_bf16 = torch.zeros_like(weight)
    for product in products.bfloat16():
        in_bf16 += product
    assert ((in_bf16.double() - exact).abs() > bound).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_takes_one_exponential_of_each_logit(dtype):
    """Every operator that touches a whole chunk of logits, in order: one of them, the softmax, has exponentials.

    Memory for logits, in bf16 also for their float32, is taken once for all chunks: new pages cost a CPU as much as the
    softmax. What is not a product works in place.
    """
    hidden, weight, labels = inputs(dtype)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            if not func.is_view and any(tensor.shape in ((S, V), (V, S)) for tensor in tensors):
                seen.append(str(func.overloadpacket).removeprefix("aten.").removeprefix("_"))
            return result

    with Watch():
        linear_cross_entropy(hidden, weight, labels, chunk_elements=LossLayout(S))
    rounded = dtype == torch.bfloat16
    one = ["mm", *["copy_"] * rounded, "amax", "gather", "softmax", "amax", "scatter_add_", "mul_"]
    one += [*["copy_"] * rounded, "mm", "mm" if rounded else "addmm_"]
    assert seen == ["new_empty", *["empty_like"] * rounded, *one, *one]


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("columns", [1, 15, 16, 6143])
def test_torchs_softmax_may_write_over_what_it_reads(rows, columns):
    """Rows shorter than a vector, whole vectors, and what is left after many: the same to the bit as in new memory."""
    logits = 9 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    expected = torch.softmax(logits, dim=-1)
    assert torch.equal(torch.softmax(logits, dim=-1, out=logits), expected)


def test_nothing_of_the_last_chunk_lives_beside_the_next():
    """At most the logits, over which all else is written: one chunk of float32, of the five that there are."""
    vocabulary, tokens = 4001, 50
    hidden, weight = torch.randn(1, tokens, 4, device="meta"), torch.randn(vocabulary, 4, device="meta")
    counter = StorageCounter([hidden, weight], vocabulary)
    labels = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    with counter:
        linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), labels, chunk_elements=LossLayout(10))
    assert counter.peak_logits == 10 * vocabulary * 4
