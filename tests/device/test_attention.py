"""Which attention a decoder takes on a device, that none of them holds an S x S tensor where it need not, or waits."""

from __future__ import annotations

import pytest

from tests.device.task_step import host_values, on_pretended_device, prepare

LAYERS = 2
KERNELS = {
    "language": {"auto": "varlen", "flash_attention_2": "flash_attn", "flex_attention": "flex", "sdpa": "efficient"},
    "sentences": {"auto": "flash", "flash_attention_2": "flash_attn", "flex_attention": "flex", "sdpa": "flash"},
}
"""Kernel classes, of packed rows and of rows of one document."""


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("case", KERNELS)
def test_every_attention_trains_a_student_and_its_teacher_on_the_device(case, attention, materials, device):
    own = {"task__sequence_length": 24} if case == "language" else {}  # no other extent of the model is 24, or 15
    ready = prepare(case, materials, task__attention=attention, **own)
    length = ready.task.units_per_sample()[0]

    output, seen = on_pretended_device(ready, device)

    models = 1 if case == "language" else 2
    kernel = KERNELS[case].get(attention)
    assert dict(seen.attention) == ({kernel: models * LAYERS} if kernel else {}), seen.report()
    dense = attention == "eager" or (attention == "sdpa" and case == "language")
    assert bool(seen.square(length)) == dense, seen.square(length)
    assert output.total.isfinite() and len(host_values(ready.gradients())) > 10
    if not dense:
        assert not seen.waits, seen.report()
