"""What only a CUDA device can show: `make gpu-check` runs these there.

Where the same lines say something on a CPU, they run there too, so that they are known to run.

    python -m pytest tests/device -m gpu
"""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from torch.nn import functional as F

from pretrain.attention import last_hidden
from pretrain.losses.chunked_cross_entropy import linear_cross_entropy
from pretrain.transfers import on_device
from tests.device.measured_run import measured_run
from tests.device.task_step import Ready, prepare
from tests.device.test_task_cases import WAITS
from tests.pretrain.conftest import rows
from tests.pretrain.task_cases import CASES, arguments

HAS_CUDA = torch.cuda.is_available()
ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")]
CUDA = pytest.param("cuda", marks=ON_CUDA)
CPU = pytest.param("cpu", marks=pytest.mark.skipif(HAS_CUDA, reason="this process trains on its CUDA device"))
"""Of a run: DeepSpeed chooses one accelerator for a process."""
ATTENTIONS = ("sdpa", "eager")
"""What every device has."""
CUDA_ATTENTIONS = (*ATTENTIONS, "auto", "flex_attention", "flash_attention_2", "flash_attention_3")


def on(device: str, ready: Ready) -> Ready:
    """Model and batch on a device."""
    place = torch.device(device)
    return Ready(ready.task, ready.module.to(place), on_device(ready.batch, place))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", [CUDA])
def test_every_task_trains_in_bf16(case, device, materials):
    """As on the pretended device, by real kernels; the loss differs by rounding from the same on the host."""
    expected = prepare(case, materials)
    torch.manual_seed(0)
    host = expected.module(expected.batch).total.item()
    ready = on(device, prepare(case, materials))
    total = ready.module(ready.batch).total
    total.backward()
    assert total.item() == pytest.approx(host, rel=2**-5)
    gradients = [gradient for gradient in ready.gradients().values() if gradient is not None]
    assert len(gradients) > 1 and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("device", "attention"),
    [*(("cpu", name) for name in ATTENTIONS), *(pytest.param("cuda", name, marks=ON_CUDA) for name in CUDA_ATTENTIONS)],
)
def test_no_document_sees_another_in_any_row(device, attention, materials):
    """Another first document of the last row moves nothing behind it, nor any other row; itself it moves."""
    if attention.startswith("flash"):
        pytest.importorskip("flash_attn" if attention.endswith("2") else "flash_attn_interface")
    # 64 is a head of 32: flex attention has none below 16, and flash kernels want a multiple of 8.
    ready = on(
        device, prepare("language", materials, task__attention=attention, task__model_overrides={"hidden_size": 64})
    )
    task, model, batch = ready.task, ready.module.model, ready.batch
    positions_BS = batch["position_ids"]
    begins_BS = positions_BS == 0
    row = int((begins_BS.sum(dim=1) > 1).nonzero().max())
    assert row > 0, "no row but the first holds two documents"
    edited_BS = torch.zeros_like(begins_BS)
    edited_BS[row, : int(begins_BS[row, 1:].nonzero()[0]) + 1] = True
    hidden = []
    with torch.no_grad():
        for ids_BS in (batch["input_ids"], torch.where(edited_BS, (batch["input_ids"] + 1) % 384, batch["input_ids"])):
            task.loss(model, batch)  # decides where attention is auto
            hidden.append(last_hidden(model, batch | {"input_ids": ids_BS}))
    moved_BS = (hidden[1] - hidden[0]).float().abs().amax(dim=-1)
    assert moved_BS[edited_BS].max() > 0.01 * hidden[0].abs().max()
    assert moved_BS[~edited_BS].max() <= 1e-3 * hidden[0].abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
def test_the_chunked_loss_is_the_dense_one(device, dtype):
    """In float32 to rounding (TF32 is off by default); in bf16 as far as the logits are rounded."""
    torch.manual_seed(0)
    hidden = torch.randn(4, 96, 64).to(device, dtype).requires_grad_()
    weight = (torch.randn(1000, 64) * 0.3).to(device, dtype).requires_grad_()
    labels = torch.randint(0, 1000, (4, 96), device=device)
    labels[:, ::7] = -100
    total, _ = linear_cross_entropy(hidden, weight, labels, chunk_elements=50_000)
    total.backward()
    found = [total.detach().float(), hidden.grad.float(), weight.grad.float()]
    hidden.grad = weight.grad = None
    dense = F.cross_entropy(F.linear(hidden, weight).float().flatten(0, 1), labels.flatten(), reduction="sum")
    dense.backward()
    bound = 1e-4 if dtype == torch.float32 else 2**-6
    for ours, theirs in zip(found, (dense.detach(), hidden.grad.float(), weight.grad.float()), strict=True):
        assert (ours - theirs).norm() <= bound * theirs.norm()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_resumed_with_deterministic_algorithms_is_the_same_run_to_the_bit(device, materials, tmp_path):
    words = {"engine__zero_stage": 2, "engine__deterministic": True}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    measured_run(arguments("language", materials, whole, **words), tmp_path / "whole.json")
    shutil.copytree(whole, resumed)
    checkpoints = sorted((resumed / "checkpoints").glob("step_*"))
    for later in checkpoints[1:]:
        shutil.rmtree(later)
    (resumed / "checkpoints" / "latest").write_text(checkpoints[0].name)
    measured_run(arguments("language", materials, resumed, **words), tmp_path / "resumed.json")
    assert [row["event"] for row in rows(resumed, "event")] == ["resume"]
    names = [path.name for path in checkpoints]
    assert (whole / "checkpoints" / names[-1] / "model.safetensors").read_bytes() == (
        resumed / "checkpoints" / names[-1] / "model.safetensors"
    ).read_bytes()
    assert [row["loss"] for row in rows(whole, "train")] == [row["loss"] for row in rows(resumed, "train")]


@pytest.mark.slow
@pytest.mark.parametrize("device", [CUDA])
def test_a_compiled_run_at_stage_3_trains(device, materials, tmp_path):
    """Inductor's kernels, with ZeRO's hooks around them, give the loss of the same run without."""
    losses = []
    for compiled in (False, True):
        output = tmp_path / f"{compiled}"
        words = arguments("language", materials, output, engine__zero_stage=3, engine__compile=compiled)
        measured_run(words, tmp_path / f"{compiled}.json")
        losses.append([row["loss"] for row in rows(output, "train")])
    assert losses[1] == pytest.approx(losses[0], rel=2**-6)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_where_the_pretended_device_says(case, device, materials):
    """torch's own count of synchronising calls in a real micro-batch."""
    ready = on(device, prepare(case, materials))
    ready.module(ready.batch).total.backward()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            ready.module(ready.batch).total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [str(warning.message) for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    places = [f"{warning.filename}:{warning.lineno}" for warning in caught]
    assert len(found) == sum(WAITS.get(case, {}).values()), places


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_rollback_does_not_double_the_peak_of_memory(device, materials, tmp_path):
    """On a CPU only that it rolls back: a process has no peak of tensors there."""
    large = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    peaks = []
    for name, poison in (("straight", []), ("back", [3, 4])):
        words = arguments(
            "language",
            materials,
            tmp_path / name,
            task="tests.device.measured_run.PoisonedTask",
            task__poison=poison,
            task__model_overrides=large if device == "cuda" else {},
            guards__max_consecutive_skips=2,
            engine__zero_stage=1,
        )
        peaks.append(measured_run(words, tmp_path / f"{name}.json")["peak_bytes"])
        assert ("rollback" in {row["event"] for row in rows(tmp_path / name, "event")}) == bool(poison)
    assert (peaks[0] > 0) == (device == "cuda") and peaks[1] <= 1.25 * peaks[0]
