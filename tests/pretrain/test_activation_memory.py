"""A pass without numbers counts what a real pass allocates, for tasks of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pretrain.errors import ConfigurationError
from pretrain.planning import activation_memory
from pretrain.planning.activation_memory import measure
from pretrain.tasks import Clip4StrTask, LanguageModelTask, VisualTokenizerTask, WordRecognitionTask
from pretrain.tasks.base import Task
from tests.pretrain.conftest import TINY
from tests.pretrain.task_cases import CLIP_SHAPE, VISUAL_SHAPE, WORD_SHAPE
from tests.pretrain.toy import CLASSES, WIDTH, ToyTask

LENGTH, SIZE = 64, 3


def language(folder: Path, **options: object) -> LanguageModelTask:
    """No shards are there, and none are needed."""
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(TINY | {"tie_word_embeddings": False}))
    return LanguageModelTask(str(path), ["nowhere"], sequence_length=LENGTH, **options)


def words(folder: Path) -> WordRecognitionTask:
    path = folder / "words.yaml"
    path.write_text(json.dumps(WORD_SHAPE))
    return WordRecognitionTask(str(path), ["nowhere"], charset="36")


@pytest.mark.parametrize("make", [language, words])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_what_a_real_pass_allocates(make, dtype, tmp_path):
    without, real = (
        activation_memory._pass(make(tmp_path), SIZE, dtype, False, None, device) for device in ("meta", "cpu")
    )
    # In bf16 a CPU keeps the statistics of LayerNorm in bf16, and every other device in float32.
    rel = 1e-6 if dtype == torch.float32 else 0.03
    assert without.kept == pytest.approx(real.kept, rel=rel) and real.kept > 0
    assert without.peak == pytest.approx(real.peak, rel=0.03)


def test_a_network_that_can_be_counted_by_hand():
    memory, _ = measure(ToyTask(), SIZE, torch.float32, False)
    # Linear -> 32 (kept by LayerNorm), LayerNorm -> 32 with mean and scale, GELU -> 32; logits are gone, their
    # log-softmax is kept; one loss a sample, twice (once detached: the same storage), its ones, the total
    hidden, rest = SIZE * 32 * 4, SIZE * 2 * 4
    least = 3 * hidden + rest + SIZE * CLASSES * 4
    assert least <= memory.kept <= least + 64
    parameters = sum(p.numel() for p in ToyTask().build_model(0).parameters())
    assert parameters == WIDTH * 32 + 32 + 64 + 32 * CLASSES + CLASSES
    assert memory.peak_with_gradients >= memory.peak
    assert memory.peak_with_gradients <= memory.peak + 4 * parameters


def test_recomputed_blocks_keep_less_and_masks_and_scores_more(tmp_path):
    def kept(checkpointing: bool = False, **options: object) -> float:
        return measure(language(tmp_path, **options), SIZE, torch.float32, checkpointing)[0].kept

    masked, layers, heads = kept(attention="sdpa"), TINY["num_hidden_layers"], TINY["num_attention_heads"]
    assert kept(checkpointing=True, attention="sdpa") < 0.6 * masked
    # every layer keeps its mask as numbers, [B, 1, S, S]; flash attention has none
    plain = kept(document_mask=False)
    assert masked - plain >= layers * SIZE * LENGTH**2 * 4
    assert kept(attention="flash_attention_2") == plain
    # auto takes such an attention on a device and on a CPU, where dropout needs a mask
    assert kept() == plain
    on_cpu, dropping = language(tmp_path), language(tmp_path, model_overrides={"attention_dropout": 0.1})
    for task in (on_cpu, dropping):
        task.plan_for("cpu")
    assert measure(on_cpu, SIZE, torch.float32, False)[0].kept == plain
    assert measure(dropping, SIZE, torch.float32, False)[0].kept > masked
    # ... and the scores of every head, in place of the fused kernel's one number a query
    assert kept(attention="eager") - plain >= 0.95 * layers * heads * SIZE * LENGTH**2 * 4


def test_logits_exist_in_chunks(tmp_path):
    vocabulary = TINY["vocab_size"]

    def logits(chunk: int) -> float:
        task = language(tmp_path, loss_chunk_elements=chunk)
        return measure(task, SIZE, torch.float32, False, vocabulary)[0].logits

    assert logits(2**30) >= SIZE * LENGTH * vocabulary * 4
    assert logits(4 * vocabulary) <= 4 * 4 * vocabulary * 4


def captions(folder) -> Task:
    shape = folder / "clip.yaml"
    shape.write_text(json.dumps(CLIP_SHAPE))
    return Clip4StrTask(str(shape), train=["nowhere"])


def test_a_task_that_reads_values_runs_for_real(tmp_path):
    memory, how = measure(captions(tmp_path), 4, torch.float32, False)
    real = activation_memory._pass(captions(tmp_path), 4, torch.float32, False, None, "cpu")
    assert "on this CPU" in how
    assert memory.kept == pytest.approx(real.kept, rel=0.03)


def test_a_visual_tokenizer_needs_no_values(tmp_path):
    shape = tmp_path / "visual.yaml"
    shape.write_text(json.dumps(VISUAL_SHAPE))
    task = VisualTokenizerTask(str(shape), ["nowhere"])
    memory, how = measure(task, 4, torch.float32, False)
    real = activation_memory._pass(task, 4, torch.float32, False, None, "cpu")
    assert how == "a pass without numbers"
    assert memory.kept == pytest.approx(real.kept, rel=0.03)


def test_a_task_that_reads_values_and_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(activation_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ConfigurationError, match=r"cannot be followed without numbers \(.+\), .* takes at least .* GB"):
        measure(captions(tmp_path), 4, torch.float32, False)


def test_the_function_of_torch_is_back_afterwards(tmp_path):
    before = nn.functional.scaled_dot_product_attention
    measure(language(tmp_path), 1, torch.float32, True)
    assert nn.functional.scaled_dot_product_attention is before


def test_a_model_that_cannot_recompute_is_refused():
    with pytest.raises(ConfigurationError, match=r"activation_checkpointing.*Sequential"):
        measure(ToyTask(), SIZE, torch.float32, True)
