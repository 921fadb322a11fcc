"""Documents of packed rows stay apart through every attention, at any size of the micro-batch, of a teacher too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from arch.pangu_pi.packed_attention import PACKED_CPU, PACKED_FLEX, TORCH_VARLEN, packed_block_mask
from data_pipeline.document_bounds import document_bounds
from pretrain.attention import built_with, last_hidden
from pretrain.attention_checks import check_document_isolation
from pretrain.command_line import parse
from pretrain.tasks.language_model import LanguageModelTask
from pretrain.trainer import train
from tests.pretrain.conftest import TINY, rows
from tests.pretrain.exact_flash import exact_flash

LENGTHS = [[5, 9, 2, 16], [32], [1, 1, 29, 1], [17, 15]]
"""Documents of every row of a micro-batch."""
FLASH = ["flash_attention_2", "flash_attention_3", TORCH_VARLEN]
OURS = [TORCH_VARLEN, PACKED_FLEX, PACKED_CPU]
"""What nobody asks for by name."""


def positions() -> torch.Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in LENGTHS])


def batch_of(task: LanguageModelTask) -> dict[str, torch.Tensor]:
    ids_BS = torch.randint(TINY["vocab_size"], (4, 32), generator=torch.Generator().manual_seed(3))
    samples = zip(ids_BS.numpy(), positions().numpy(), strict=True)
    return task.collate([{"input_ids": ids, "labels": ids, "position_ids": position} for ids, position in samples])


def make(folder: Path, attention: str, train: Any = ("nowhere",), **options: Any) -> LanguageModelTask:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(TINY | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}))
    return LanguageModelTask(str(path), list(train), sequence_length=32, attention=attention, **options)


def build(task: LanguageModelTask, monkeypatch: pytest.MonkeyPatch, name: str) -> nn.Module:
    """The task's model without shards; `name` may be one that auto would choose on a GPU."""
    monkeypatch.setattr(type(task), "special_tokens", lambda self: {})
    model = task.build_model(0).eval()
    if name != task.attention:
        model.set_attn_implementation(name)
    return model


def test_bounds_are_those_of_all_rows_laid_end_to_end():
    bounds = document_bounds(positions())
    assert bounds["cu_seq_lens"].tolist() == [0, 5, 14, 16, 32, 64, 65, 66, 95, 96, 113, 128]
    assert bounds["cu_seq_lens"].dtype == torch.int32 and bounds["longest_document"].shape == (32,)
    # A row that begins within a document begins a document of attention all the same.
    begun = torch.tensor([[3, 4, 0, 1], [2, 3, 4, 5]])
    assert document_bounds(begun)["cu_seq_lens"].tolist() == [0, 2, 4, 8]


@pytest.mark.parametrize("name", [*FLASH, PACKED_CPU, "flex_attention", PACKED_FLEX])
def test_every_attention_computes_what_sdpa_computes_with_a_dense_mask(name, tmp_path, monkeypatch):
    calls, with_gradient = exact_flash(monkeypatch), name in (*FLASH, PACKED_CPU)
    results = []
    for attention in ("sdpa", name):
        task = make(tmp_path, "auto" if attention in OURS else attention)
        model, batch = build(task, monkeypatch, attention), batch_of(task)
        # Flex attention's kernel would take a minute to compile, and has no backward pass on a CPU.
        with torch.compiler.set_stance("force_eager"), torch.set_grad_enabled(with_gradient):
            output = task.loss(model.train(), batch)
        if with_gradient:
            output.total.backward()
        results.append((output.per_sample, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    if with_gradient:
        for dense, other in zip(results[0][1], results[1][1], strict=True):
            torch.testing.assert_close(dense, other, rtol=1e-4, atol=1e-5)
    if name in FLASH:
        assert set(calls) == {"varlen_attn" if name == TORCH_VARLEN else "flash_attn_varlen_func"}
        assert len(calls) == TINY["num_hidden_layers"]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("name", ["sdpa", *FLASH, PACKED_FLEX, PACKED_CPU])
def test_the_audit_isolates_documents_in_all_rows(name, qk_norm, tmp_path, monkeypatch):
    exact_flash(monkeypatch)
    task = make(tmp_path, "auto", model_overrides={"qk_norm": qk_norm})
    model, batch = build(task, monkeypatch, name), batch_of(task)
    with torch.compiler.set_stance("force_eager"):
        assert (
            check_document_isolation(model, batch)
            == "isolates 11 documents in 4 real rows (largest change elsewhere 0.0e+00)"
        )


@pytest.mark.parametrize("scheme", ["constant", "zero_output"])
@pytest.mark.parametrize("bounds", [[0, 128], [0, 32, 64, 96, 128], [0, 5, 14, 16, 32, 64, 65, 66, 95, 113, 128]])
def test_the_audit_notices_wrong_bounds_in_any_row(bounds, scheme, tmp_path, monkeypatch):
    """All rows one document; every row one; and only the last row's first document joined to the row before.

    Also where attention has no effect yet, whose weights and outputs the check leaves as they were.
    """
    exact_flash(monkeypatch)
    task = make(tmp_path, "flash_attention_2", model_overrides={"init_scheme": scheme})
    model, batch = build(task, monkeypatch, "flash_attention_2"), batch_of(task)
    sentence, silent = check_document_isolation(model, batch), "2 output projections are zero and were stood in for"
    assert "isolates 11 documents" in sentence and (silent in sentence) == (scheme == "zero_output")
    batch["cu_seq_lens"] = torch.tensor(bounds, dtype=torch.int32)
    batch["longest_document"] = torch.zeros(128)
    with pytest.raises(RuntimeError, match="the document mask leaks"):
        check_document_isolation(model, batch)
    if scheme == "zero_output":
        assert torch.equal(last_hidden(model, batch), model.model.norm(model.model.embed_tokens(batch["input_ids"])))


def test_flash_attention_that_is_not_told_where_documents_begin_is_caught(tmp_path, monkeypatch):
    """The fault itself: transformers finds them in positions only where there is a single row."""
    calls = exact_flash(monkeypatch)
    task = make(tmp_path, "flash_attention_2")
    model, batch = build(task, monkeypatch, "flash_attention_2"), batch_of(task)
    whole = model.model.forward

    def untold(input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> Any:
        return whole(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    model.model.forward = untold
    with pytest.raises(RuntimeError, match="the document mask leaks"):
        check_document_isolation(model, batch)
    assert set(calls) == {"flash_attn_func"}


def test_rows_of_one_document_need_no_mask_and_no_look_at_positions(tmp_path, monkeypatch):
    task = make(tmp_path, "auto", document_mask=False)
    model = build(task, monkeypatch, "sdpa")
    ids = torch.arange(32).numpy()
    batch = task.collate([{"input_ids": ids, "position_ids": ids}] * 2)
    expected = model.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).last_hidden_state
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", None)  # would be called
    assert torch.equal(last_hidden(model, batch), expected)


@pytest.mark.parametrize("length", [96, 128, 300])
def test_the_block_mask_is_that_of_the_dense_one(length):
    """The same blocks as torch finds by looking at all pairs, and the same pairs."""
    from torch.nn.attention.flex_attention import create_block_mask

    generator = torch.Generator().manual_seed(length)
    lengths = torch.randint(1, 90, (40,), generator=generator)
    positions_BS = torch.cat([torch.arange(int(n)) for n in lengths])[: 3 * length].view(3, length)
    bounds = document_bounds(positions_BS)["cu_seq_lens"]
    mask = packed_block_mask(bounds, 3, length)
    index_T = torch.arange(3 * length)
    document_BS = torch.searchsorted(bounds, index_T, right=True).view(3, length)

    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (document_BS[b, q] == document_BS[b, k]) & (k <= q)

    dense = create_block_mask(allowed, 3, None, length, length, device="cpu")
    assert torch.equal(mask.to_dense() != 0, dense.to_dense() != 0)
    assert torch.equal(mask.full_kv_num_blocks, dense.full_kv_num_blocks) or length % 128
    q, k = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
    for row in range(3):
        b = torch.full_like(q, row)
        assert torch.equal(mask.mask_mod(b, b, q, k), allowed(b, b, q, k))


def test_without_bounds_the_packed_kernels_are_sdpa(tmp_path, monkeypatch):
    """Generation, and batches with padding: what hooks do with a model in training."""
    calls = exact_flash(monkeypatch)
    task = make(tmp_path, "auto")
    ids_BS = torch.randint(TINY["vocab_size"], (2, 12))
    padding_BS = (torch.arange(12) >= torch.tensor([[4], [0]])).long()
    outputs = []
    for name in ("sdpa", *OURS):
        model = build(task, monkeypatch, name)
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        with torch.no_grad():
            logits = model(input_ids=ids_BS, attention_mask=padding_BS).logits
        outputs.append((logits, model.generate(ids_BS, attention_mask=padding_BS, **options)))
    for logits, generated in outputs[1:]:
        assert torch.equal(logits, outputs[0][0]) and torch.equal(generated, outputs[0][1])
    assert not calls


@pytest.mark.parametrize("name", OURS)
def test_no_name_of_ours_leaves_with_a_model(name, tmp_path, monkeypatch):
    model = build(make(tmp_path, "auto"), monkeypatch, name)
    model.save_pretrained(tmp_path / "saved")
    written = "".join(path.read_text() for path in (tmp_path / "saved").glob("*.json"))
    assert name not in written and "attn_implementation" not in written


def test_explicit_names_are_built_as_they_are_and_auto_waits_for_the_device():
    assert built_with("auto") == "sdpa" and built_with("flash_attention_2") == "flash_attention_2"


def test_the_teacher_is_told_and_tested_alike(corpus, tmp_path, monkeypatch):
    exact_flash(monkeypatch)
    student = make(tmp_path, "flash_attention_2", train=[str(corpus["train"])])
    model = student.build_model(0).eval()
    student.save_pretrained(model, model.state_dict(), tmp_path / "teacher")
    options = {"train": [str(corpus["train"])], "teacher": str(tmp_path / "teacher")}
    task, dense = (make(tmp_path, attention, **options) for attention in ("flash_attention_2", "sdpa"))
    (source,), _ = task.training_sources()
    batch = task.collate([source.sample(number) for number in range(4)])
    audit = task.audit(model, batch)
    assert audit["teacher's document mask"] == audit["document mask"] and "in 4 real rows" in audit["document mask"]
    assert audit["teacher's attention"] == audit["attention"] == "flash_attention_2 (asked for: flash_attention_2)"
    like = torch.empty(0)
    for one, other in zip(task.teacher.hidden(batch, like), dense.teacher.hidden(batch, like), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # A teacher whose documents leak is refused although the student's do not.
    frozen = task.teacher.model()
    whole = frozen.model.forward
    one = torch.tensor([0, 128], dtype=torch.int32)
    joined = {"cu_seq_lens_q": one, "cu_seq_lens_k": one, "max_length_q": 128, "max_length_k": 128}
    frozen.model.forward = lambda **told: whole(**{**told, **joined})
    with pytest.raises(RuntimeError, match="the document mask leaks"):
        task.audit(model, batch)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_through_the_engine_has_the_losses_of_sdpa(stage, tiny_arguments, tmp_path, monkeypatch):
    """Loader, engine, recomputed blocks, validation and audit pass on what the kernels need."""
    exact_flash(monkeypatch)
    settings = {"steps": 2, "validation__every": 2, "checkpoint__every": 2, "engine__zero_stage": stage}
    losses = []
    for name in ("sdpa", "flash_attention_2"):
        arguments = tiny_arguments(
            tmp_path / name, task__attention=name, engine__activation_checkpointing="true", **settings
        )
        train(parse([*arguments, "--batch.micro_size", "4"])[0])
        losses.append([row["loss"] for kind in ("train", "valid") for row in rows(tmp_path / name, kind)])
        audit = json.loads((tmp_path / name / "audit.json").read_text())
        assert audit["attention"].startswith(name) and "in 4 real rows" in audit["document mask"]
        assert audit["rotary"].startswith("float32")
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)
