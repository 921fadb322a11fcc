"""Chunks of logits by device: the rule, with its arithmetic."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pretrain.losses.loss_layout import CPU_ELEMENTS, LossLayout, choose_layout, device_memory, layout_on

GB = 10**9
PANGU = 100_883
"""PanGu-pi's vocabulary."""


def on_device(memory: float | None, vocabulary: int, chunk_elements: int | None = None) -> LossLayout:
    return choose_layout("cuda", memory, vocabulary, chunk_elements, fused=True, wide=True)


@pytest.mark.parametrize(
    ("memory", "vocabulary", "tokens"),
    [
        (80 * GB, PANGU, 4096),
        (141 * GB, 384, 4096),
        (24 * GB, PANGU, 2048),  # 24e9 / 64 / 100,928 = 3,715
        (8 * GB, 151_936, 512),  # 8e9 / 64 / 151,936 = 822
        (None, PANGU, 2048),  # as 16 GB: 2,477
        (1, PANGU, 1),
    ],
)
def test_an_accelerator_takes_few_large_chunks_within_a_share_of_its_memory(memory, vocabulary, tokens):
    layout = on_device(memory, vocabulary)
    assert (layout.tokens, layout.row(vocabulary) % 64) == (tokens, 0)
    if memory is not None and tokens > 1:
        assert tokens * layout.row(vocabulary) * 2 <= memory / 32  # bf16


def test_ranks_with_nearly_the_same_device_cut_alike():
    assert len({on_device(memory, PANGU) for memory in (int(23.5 * GB), int(24.1 * GB), int(25.7 * GB))}) == 1


def test_a_cpu_keeps_the_size_that_was_measured():
    layout = layout_on(torch.device("cpu"), torch.bfloat16, PANGU, None)
    assert layout == LossLayout(41) and CPU_ELEMENTS // PANGU == 41 and layout.row(PANGU) == PANGU
    assert layout.parts(PANGU) == [slice(0, PANGU)]


def test_a_number_of_logits_is_kept_to():
    assert choose_layout("cpu", None, 8192, 2**22, False, False).tokens == 512
    assert choose_layout("cpu", None, 10**9, 2**22, False, False).tokens == 1  # never empty
    assert on_device(80 * GB, PANGU, 10**7).tokens == 10**7 // 100_928


def test_chunks_are_few_and_even_and_parts_cover_every_column():
    assert [chunk.stop - chunk.start for chunk in LossLayout(4096).chunks(4352)] == [2176, 2176]
    for tokens in (0, 1, 7, 4096, 4097, 16_384):
        chunks = LossLayout(1000).chunks(tokens)
        covered = [token for chunk in chunks for token in range(chunk.start, chunk.stop)]
        assert covered == list(range(tokens)) and len(chunks) == -(-tokens // 1000)
    for vocabulary in (1, 63, 64, 65, PANGU):
        parts = LossLayout(1, 64).parts(vocabulary)
        assert [column for part in parts for column in range(part.start, part.stop)] == list(range(vocabulary))


def test_only_the_size_of_a_device_is_asked_for(monkeypatch):
    properties = SimpleNamespace(total_memory=80 * GB)
    there = SimpleNamespace(is_available=lambda: True, get_device_properties=lambda _: properties)
    monkeypatch.setattr(torch, "get_device_module", lambda _: there)
    assert device_memory(torch.device("cuda", 1)) == 80 * GB
    there.is_available = lambda: False  # a pretended device
    assert device_memory(torch.device("cuda", 1)) is None and device_memory(torch.device("cpu")) is None
    assert layout_on(torch.device("cuda", 0), torch.float64, 384, None).fused is False
