"""Chunked linear cross-entropy against the plain one: values, gradients, ignored labels, token weights."""

import pytest
import torch
from torch.nn import functional as F

from pretrain.loss import IGNORE_INDEX, chunk_length, linear_cross_entropy

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


def test_a_chunk_is_never_empty_and_misfitting_shapes_are_named():
    assert chunk_length(10**9, 2**22) == 1 and chunk_length(8192, 2**22) == 512
    hidden, weight, labels = inputs()
    with pytest.raises(ValueError, match=r"hidden \(2, 37, 16\), head \(101, 16\) and labels \(2, 5\)"):
        linear_cross_entropy(hidden, weight, labels[:, :5])
