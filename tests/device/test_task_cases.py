"""Every task runs forward and backward in bf16 on a device that is pretended, and says where the host waits for it."""

from __future__ import annotations

import pytest
import torch

from pretrain.transfers import on_device
from tests.device.pretended import CUDA
from tests.device.task_step import host_values, on_pretended_device, prepare
from tests.pretrain.task_cases import CASES

WAITS = {"captioned_words": {"arch/clip4str/model.py:cross_memory": 1}}
"""Where the host must wait for the device in a micro-batch: captions are written by a program of the host."""


@pytest.mark.parametrize("case", CASES)
def test_a_task_in_bf16_trains_on_the_device_as_on_the_host_and_waits_where_it_must(case, materials, device):
    """No tensor is on the wrong device or of the wrong type, and what the model learns from is the same.

    A wait drains the device's queue of kernels; the report names its line.
    """
    ready = prepare(case, materials)
    torch.manual_seed(0)
    ready.module(ready.batch).total.backward()  # as in `on_pretended_device`: a codebook moves with every batch
    ready.module.zero_grad()
    expected = ready.module(ready.batch)
    expected.total.backward()
    gradients = {name: grad.clone() for name, grad in host_values(ready.gradients()).items()}
    ready = prepare(case, materials)

    torch.manual_seed(0)
    output, seen = on_pretended_device(ready, device)

    assert output.total.device.type == "cuda" and output.per_sample.device.type == "cuda"
    assert {value.device.type for value in output.metrics.values()} <= {"cuda"}
    assert output.total.item() == pytest.approx(expected.total.item(), rel=2**-8)
    found = host_values(ready.gradients())
    assert found.keys() == gradients.keys() and found
    for name, gradient in found.items():
        assert gradient.dtype == torch.bfloat16, name
        assert torch.linalg.vector_norm((gradient - gradients[name]).float()) <= 2**-4 * max(
            float(torch.linalg.vector_norm(gradients[name].float())), 1e-3
        ), name
    assert seen.kernels() > 20
    assert seen.waits_by_function() == WAITS.get(case, {}), seen.report()

    with device, torch.no_grad():  # what follows between two steps
        batch = on_device(ready.batch, CUDA)
        ready.module.eval()
        assert ready.task.audit(ready.module.model, batch) is not None
        assert ready.module(batch).total.isfinite()
