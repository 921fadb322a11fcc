"""A pretended device does what a real one does: it refuses, it makes the host wait, and it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.document_bounds import document_bounds
from tests.device.observations import ROOT
from tests.device.pretended import CUDA, PretendedDevice

WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "decision": lambda x: bool((x > 0).any()),
    "list": lambda x: x.tolist(),
    "copy": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask of a row": lambda x: x[:, torch.tensor([True, False, True], device="cuda")],
    "assigned under a mask": lambda x: x.__setitem__(x > 0, torch.zeros(int((x.cpu() > 0).sum()), device="cuda")),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: (x > 0).long().flatten().bincount(),
    "list to tensor": lambda x: torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "blocking": lambda x: torch.ones(3).to("cuda"),
    "host into device": lambda x: x.copy_(torch.ones(2, 3)),
    "host index": lambda x: x[torch.tensor([0, 1])],
    "where": lambda x: torch.where(x > 0),
}
FREE: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).exp().softmax(-1),
    "number under a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "choice": lambda x: torch.where(x > 0, x, 0.0),
    "made there": lambda x: torch.zeros(3, device=x.device) + torch.arange(3, device="cuda"),
    "like": lambda x: torch.randn_like(x) + x.new_zeros(2, 3) + F.one_hot(x.argmax(dim=1), 3),
    "not blocking": lambda x: torch.ones(3).to("cuda", non_blocking=True),
    "slices": lambda x: x[:, 1:].transpose(0, 1).contiguous(),
    "index": lambda x: x[x.argmax(dim=0)],
    "type": lambda x: x.to(torch.bfloat16).float(),
    "number of the host": lambda x: x * torch.tensor(2.0),
}


@pytest.fixture
def on_device() -> PretendedDevice:
    return PretendedDevice()


def matrix() -> Tensor:
    return torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])


@pytest.mark.parametrize("name", WAITING)
def test_these_wait_for_the_device(name, on_device):
    with on_device:
        x = matrix().to("cuda")
        with on_device.watching() as seen:
            WAITING[name](x)
    assert sum(seen.waits.values()) >= 1


@pytest.mark.parametrize("name", FREE)
def test_these_do_not_and_stay_on_the_device(name, on_device):
    with on_device:
        x = matrix().to("cuda")
        with on_device.watching() as seen:
            made = FREE[name](x)
    assert not seen.waits, seen.report()
    assert made is None or made.device == CUDA


def test_tensors_of_both_sides_do_not_mix(on_device):
    with on_device:
        x = matrix().to("cuda")
        for mixed in (lambda: x + matrix(), lambda: x @ torch.ones(3, 1), lambda: torch.cat([x, matrix()])):
            with pytest.raises(
                RuntimeError, match=r"same device, but found at least two devices, cuda:0 and cpu.*\[\d"
            ):
                mixed()
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            x.numpy()


def test_types_do_not_mix_either(on_device):
    layer = on_device.move(nn.Linear(3, 2).bfloat16())
    with on_device, pytest.raises(RuntimeError, match="dtype"):
        layer(matrix().to("cuda"))


def test_values_and_gradients_are_those_of_the_host_and_ties_stay(on_device):
    tied = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    tied(matrix()).square().sum().backward()
    expected = tied[0].weight.grad.clone()
    tied.zero_grad()

    on_device.move(tied)
    assert (
        tied[2].weight is tied[0].weight and tied[0].weight.device == CUDA and isinstance(tied[0].weight, nn.Parameter)
    )
    with on_device:
        tied(matrix().to("cuda")).square().sum().backward()
    assert torch.allclose(tied[0].weight.grad.value, expected)


def test_a_wait_names_the_line_of_the_project_that_asked(on_device):
    with on_device:
        positions_BS = torch.tensor([[0, 1, 0, 1]]).to("cuda")
        with on_device.watching() as seen:
            document_bounds(positions_BS)
    assert seen.waits_by_function().keys() == {"data_pipeline/document_bounds.py:document_bounds"}
    source = (ROOT / "data_pipeline/document_bounds.py").read_text().splitlines()
    asking = {(wait.operator, source[wait.line.line - 1].strip()) for wait in seen.waits}
    assert ("aten.nonzero", "begins_N = document_begins(position_BS).flatten().nonzero().flatten()") in asking


@pytest.mark.parametrize(
    ("dtype", "mask", "groups", "kernel"),
    [
        (torch.bfloat16, False, 1, "flash"),
        (torch.bfloat16, True, 1, "efficient"),
        (torch.float32, False, 1, "efficient"),
        (torch.bfloat16, False, 2, "flash"),
        (torch.bfloat16, True, 2, "math"),
        (torch.float64, False, 1, "math"),
    ],
)
def test_the_kernel_of_attention_is_the_one_that_cuda_would_choose(dtype, mask, groups, kernel, on_device):
    with on_device:
        query = torch.randn(2, 4, 8, 16, dtype=dtype).to("cuda")
        key = torch.randn(2, 4 // groups, 8, 16, dtype=dtype).to("cuda")
        visible = torch.ones(8, 8, dtype=torch.bool, device="cuda").tril()[None, None] if mask else None
        with on_device.watching() as seen:
            F.scaled_dot_product_attention(query, key, key, visible, is_causal=not mask, enable_gqa=groups > 1)
    assert dict(seen.attention) == {kernel: 1}
    assert ((1, 1, 8, 8) in seen.masks) == mask
    assert bool(seen.square(8)) == (mask or kernel == "math")
