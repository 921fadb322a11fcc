"""Attention document by document on a CPU: against a dense mask in float64, in how many calls, and as an operator."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import profile

from arch.pangu_pi.document_attention import WINDOW, document_attention, segments

HEADS, WIDTH, SCALE = 2, 8, 0.3
LENGTHS = {
    "one document": [300],
    "long ones": [90, 70, 200],
    "short ones between long ones": [3, 100, 20, 20, 20, 20, 80, 1],
    "tokens": [1] * 150,
}


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def states(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    drawn = (torch.randn(tokens, HEADS, WIDTH, generator=generator).to(dtype) for _ in range(3))
    return [tensor.requires_grad_() for tensor in drawn]


def dense(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    number_T = torch.repeat_interleave(torch.tensor(lengths))
    reads_TT = (number_T[:, None] == number_T) & torch.ones(len(query), len(query)).tril().bool()
    heads_first = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return scaled_dot_product_attention(*heads_first, attn_mask=reads_TT, scale=SCALE)[0].transpose(0, 1)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_output_and_gradients_are_those_of_a_dense_mask(lengths):
    inputs = states(sum(lengths), torch.float64)
    output, lse_TH = document_attention(*inputs, bounds_of(lengths), SCALE)
    expected = dense(*inputs, lengths)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    gradient = torch.randn(output.shape, dtype=torch.float64)
    results = (torch.autograd.grad(out, inputs, gradient) for out in (output, expected))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    assert lse_TH.shape == output.shape[:2] and not lse_TH.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_keep_their_precision(dtype):
    """Against float64 of the same rounded inputs; sums of a hundred numbers near 1, each rounded a few times."""
    lengths = LENGTHS["short ones between long ones"]
    inputs = states(sum(lengths), dtype)
    output, lse_TH = document_attention(*inputs, bounds_of(lengths), SCALE)
    assert output.dtype == dtype and lse_TH.dtype == torch.float32
    expected = dense(*(tensor.double() for tensor in inputs), lengths)
    assert float((output - expected).abs().max()) < 8 * torch.finfo(dtype).eps * float(expected.abs().max())


def test_documents_never_touch_each_other():
    """Also those that share a call: whatever the others are, the result is the same to the bit."""
    lengths = LENGTHS["short ones between long ones"]
    inputs, bounds = [tensor.detach() for tensor in states(sum(lengths), torch.float32)], bounds_of(lengths)
    before, _ = document_attention(*inputs, bounds, SCALE)
    number_T = torch.repeat_interleave(torch.tensor(lengths))
    for edited in range(len(lengths)):
        changed = [torch.where((number_T == edited)[:, None, None], 3 * tensor + 1, tensor) for tensor in inputs]
        after, _ = document_attention(*changed, bounds, SCALE)
        same_T = (after == before).flatten(1).all(1)
        assert same_T[number_T != edited].all() and not same_T[number_T == edited].all()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_short_documents_share_a_call_and_long_ones_have_no_mask(lengths):
    tokens, bounds = sum(lengths), bounds_of(lengths)
    with torch.no_grad(), profile() as seen:
        document_attention(*states(tokens, torch.float32), bounds, SCALE)
    found = segments(bounds, torch.float32)
    assert sum(event.name == "aten::_scaled_dot_product_flash_attention_for_cpu" for event in seen.events()) == len(
        found
    )
    assert [part.begin for part in found] == [0, *(part.end for part in found[:-1])] and found[-1].end == tokens
    for first, second in pairwise(found):
        assert second.end - first.begin > WINDOW, "two neighbours would have fitted into one call"
    for part in found:
        shared = bool(((bounds > part.begin) & (bounds < part.end)).any())
        assert (part.mask_LL is not None) == shared
        assert not shared or part.mask_LL.shape == (part.end - part.begin,) * 2
        assert not shared or len(part.mask_LL) <= WINDOW


def test_it_is_an_operator_of_torch():
    lengths = LENGTHS["long ones"]
    arguments = (*states(sum(lengths), torch.float32), bounds_of(lengths), SCALE)
    torch.library.opcheck(document_attention, arguments)
