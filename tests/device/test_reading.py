"""What a trained model is asked outside of its loss runs on the device too: reading words, images to codes and back.

No waits are counted here: words are read until all have ended, which the host must see.
"""

from __future__ import annotations

import pytest
import torch

from arch.clip4str import decoding as clip4str
from arch.parseq import decoding as parseq
from tests.device.pretended import CUDA
from tests.device.task_step import prepare


@pytest.mark.parametrize("mode", ["autoregressive", "parallel"])
@pytest.mark.parametrize(("case", "room"), [("words", parseq), ("captioned_words", clip4str)])
def test_words_are_read_on_the_device(case, room, mode, materials, device):
    ready = prepare(case, materials, torch.float32, size=2)
    model, images = ready.module.model.eval(), ready.batch["image"]
    expected = room.recognise(model, model.config.normalise(images), mode)
    device.move(model)
    with device:
        found = room.recognise(model, model.config.normalise(images.to("cuda")), mode)
    assert found.device == CUDA
    assert torch.allclose(found.value, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_become_codes_and_images_again_on_the_device(dtype, materials, device):
    ready = prepare("images", materials, dtype, size=2)
    model, images = ready.module.model.eval(), (ready.batch["image"] / 255).to(dtype)
    expected = model.encode(images)
    device.move(model)
    with device:
        ids_BN = model.encode(images.to("cuda"))
        again = model.decode(ids_BN)
    assert torch.equal(ids_BN.value, expected) and again.shape == images.shape
    assert (again.device, again.dtype) == (CUDA, dtype)
