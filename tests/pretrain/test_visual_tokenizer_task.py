"""Visual tokenizers in the shared trainer: the loss by hand, exact resume, every checkpoint is a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pretrain.command_line import parse
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.tasks.visual_tokenizer import ReconstructionLoss, VisualTokenizerTask
from pretrain.trainer import Outcome, train
from tests.pretrain.conftest import ROOT, rows
from tests.tokenizer.image_cases import as_png, draw_images, write_parquet
from tokenizer.__main__ import main
from tokenizer.inputs.images import ImageError
from tokenizer.visual.load import load_visual_tokenizer
from tokenizer.visual.reconstruction import perplexity

SHAPE = {"image_size": 16, "grid": 4, "stem": 2, "width": 8, "blocks": 1, "codes": 12, "code_dim": 4, "levels": [3, 4]}


@pytest.fixture
def shape(tmp_path: Path) -> str:
    path = tmp_path / "shape.yaml"
    path.write_text(json.dumps(SHAPE))
    return str(path)


@pytest.fixture
def images(tmp_path: Path) -> str:
    return str(write_parquet(tmp_path / "images.parquet", [as_png(image) for image in draw_images(20, 20)]))


def make(shape: str, images: str, **changes: Any) -> VisualTokenizerTask:
    return VisualTokenizerTask(**{"model": shape, "train": [images], **changes})


def arguments(shape: str, images: str, output: Path, **changes: Any) -> list[str]:
    settings = {
        "task": "pretrain.tasks.VisualTokenizerTask",
        "task.model": shape,
        "task.train": json.dumps([images]),
        "task.valid": json.dumps({"held_out": images}),
        "task.copies": 3,
        "output": output,
        "steps": 6,
        "batch.size": 8,
        "batch.micro_size": 4,
        "optimizer.lr": 0.003,
        "engine.zero_stage": 0,
        "checkpoint.every": 2,
        "validation.every": 6,
        "telemetry.every": 1,
        "telemetry.tensorboard": "false",
        "telemetry.progress_bar": "false",
    }
    settings.update({name.replace("__", "."): value for name, value in changes.items()})
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def batch_of(task: VisualTokenizerTask, numbers: list[int]) -> dict[str, torch.Tensor]:
    (source,), _ = task.training_sources()
    return task.collate([source.sample(number) for number in numbers])


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "backbone.pth")
    return str(tmp_path / "backbone.pth")


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_the_loss_is_the_weighted_sum_of_its_terms(shape, images, backbone, quantizer):
    weights = ReconstructionLoss(l1=2.0, l2=3.0, perceptual=0.5, commitment=4.0)
    task = make(
        shape, images, loss_weights=weights, perceptual_weights=backbone, model_overrides={"quantizer": quantizer}
    )
    model = task.build_model(0).eval()
    batch = batch_of(task, [0, 5, 3])
    pixels = batch["image"].double() / 255
    output = model(pixels.float())
    output_loss = task.loss(model, batch)
    again, total = output.images_B3SS.double(), 0.0
    for number in range(3):
        difference = again[number] - pixels[number]
        pair = (again[number : number + 1].float(), pixels[number : number + 1].float())
        one = 2 * difference.abs().mean() + 3 * (difference**2).mean() + 0.5 * task._perceptual(*pair)
        one = float((one + 4 * output.commitment_B[number]).detach())
        assert float(output_loss.per_sample[number]) == pytest.approx(one, rel=1e-4)
        total += one
    assert float(output_loss.total) == pytest.approx(total, rel=1e-4)
    assert task.weight(batch) == 3 == float(output_loss.per_sample_weight.sum())
    counts = np.bincount(output.ids_BN.flatten().numpy(), minlength=12)
    assert float(output_loss.metrics["codes_used"]) == pytest.approx((counts > 0).mean())
    assert float(output_loss.metrics["code_perplexity"]) == pytest.approx(perplexity(counts), rel=1e-5)
    assert set(output_loss.metrics) == {"l1", "l2", "commitment", "perceptual", "codes_used", "code_perplexity"}


def test_the_perceptual_network_is_no_part_of_the_model(shape, images, backbone):
    task = make(shape, images, perceptual_weights=backbone)
    model = task.build_model(0)
    batch = batch_of(task, [0, 1])
    task.loss(model, batch).total.backward()
    assert all(p.grad is None for p in task._perceptual.parameters())
    plain = make(shape, images)
    assert model.state_dict().keys() == plain.build_model(0).state_dict().keys()
    assert "perceptual" not in plain.loss(plain.build_model(0), batch).metrics
    assert task.identity() != plain.identity()


def test_the_codebook_starts_the_same_from_the_same_seed(shape, images):
    books = [make(shape, images).build_model(seed).codebook() for seed in (3, 3, 4)]
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])
    state = torch.random.get_rng_state()
    make(shape, images).build_model(3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stopped_while_dead_codes_are_replaced_and_continued_is_the_same_run(shape, images, tmp_path):
    """Moving averages of the codebook included."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    extra = {"task__model_overrides": json.dumps({"dead_code_threshold": 3.0})}
    assert train(parse(arguments(shape, images, whole, **extra))[0]) is Outcome.FINISHED

    class Stop(Exception):
        pass

    config = parse(arguments(shape, images, cut, **extra))[0]
    plain, calls = config.task.loss, []

    def dying(model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) > 9:  # in step 5 of 6, after the checkpoint at step 4
            raise Stop
        return plain(model, batch)

    config.task.loss = dying  # type: ignore[method-assign]
    with pytest.raises(Stop):
        train(config)
    assert train(parse(arguments(shape, images, cut, **extra))[0]) is Outcome.FINISHED
    assert [row["loss"] for row in rows(cut, "train")][-2:] == [row["loss"] for row in rows(whole, "train")][-2:]
    left, right = (load_file(run / "checkpoints/step_00000006/model.safetensors") for run in (whole, cut))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    early = load_file(whole / "checkpoints/step_00000004/model.safetensors")
    assert not torch.equal(early["quantizer._codebook.embed"], left["quantizer._codebook.embed"])


def test_a_run_is_a_visual_tokenizer(shape, images, tmp_path, capsys):
    run = tmp_path / "run"
    config = parse(arguments(shape, images, run))[0]
    train(config)
    tokenizer, checkpoint = load_visual_tokenizer(run), run / "checkpoints/step_00000006"
    assert tokenizer.hash == load_visual_tokenizer(checkpoint).hash
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.grid) == ("vq", 12, 4)
    model = config.task.load_model(checkpoint).eval()
    batch = batch_of(config.task, [0, 1])["image"]
    ids = tokenizer.encode(batch.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(ids, model.encode(batch.float() / 255).numpy())
    inspect = ["--tokenizer", str(run), "--images", f"mine={images}", "--output", str(tmp_path / "inspected")]
    assert main(["visual", "inspect", *inspect]) == 0
    assert json.loads((tmp_path / "inspected/inspection.json").read_text())["hash"] == tokenizer.hash
    metrics = rows(run, "train")[-1]
    assert {"l1", "l2", "commitment", "codes_used", "code_perplexity"} <= metrics.keys()
    assert rows(run, "valid")[-1]["loss/held_out"] > 0
    # A tokenizer is also what another run may start from.
    again = make(shape, images, initial_weights=str(run)).build_model(0)
    assert torch.equal(again.codebook(), model.codebook()) and all(p.requires_grad for p in again.parameters())
    with pytest.raises(ConfigurationError, match=r"task\.initial_weights: .* not a tokenizer of the shape"):
        make(shape, images, initial_weights=str(run), model_overrides={"blocks": 2}).build_model(0)
    with pytest.raises(CheckpointError, match="loss_weights"):
        train(parse(arguments(shape, images, run, task__loss_weights="{'l1': 2.0}"))[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "task.train is empty"),
        ({"copies": -1}, "task.copies is -1"),
        ({"model": "no.yaml"}, "task.model or task.model_overrides: no.yaml"),
        ({"model_overrides": {"grid": 3}}, "grid: image_size 16"),
        ({"model_overrides": {"codes": 400}}, "task.initial_images: 20 images have 320 latents, fewer than 400 codes"),
        ({"initial_weights": "nowhere"}, "task.initial_weights: nowhere: no such directory"),
        ({"perceptual_weights": "gone.pth"}, "task.perceptual_weights: gone.pth: no weights of torchvision"),
    ],
)
def test_what_cannot_be_is_refused(shape, images, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        task = make(shape, images, **changes)
        task.loss(task.build_model(0), batch_of(task, [0]))


def test_loss_weights_that_ask_for_nothing_are_refused():
    with pytest.raises(ValueError, match="l1, l2: one of them must be above 0"):
        ReconstructionLoss(l1=0, l2=0)
    with pytest.raises(ValueError, match="commitment: must be at least 0"):
        ReconstructionLoss(commitment=-1)


def test_a_codebook_trains_in_float32_where_the_model_is_in_bf16(shape, images):
    """An average of decay 0.99 would not move in bf16: its steps are smaller than half a rounding."""
    task = make(shape, images)
    start = task.build_model(0).codebook().clone()
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = task.build_model(0).to(dtype)
        book = dict(model.quantizer._codebook.named_buffers())
        assert {book[name].dtype for name in ("embed", "embed_avg", "cluster_size")} == {torch.float32}
        for _ in range(10):
            task.loss(model, batch_of(task, [0, 1, 2, 3])).total.backward()
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {dtype}
        moved[dtype] = model.codebook() - start
    whole = moved[torch.float32].norm()
    assert whole > 0 and (moved[torch.bfloat16] - moved[torch.float32]).norm() < 0.1 * whole


def test_a_damaged_image_ends_the_run_by_name(shape, tmp_path):
    good = as_png(draw_images(1, 20)[0])
    path = write_parquet(tmp_path / "x.parquet", [good, good[:-60]])
    with pytest.raises(ImageError, match=r"x\.parquet: row 1: damaged"):
        train(parse(arguments(shape, str(path), tmp_path / "run", task__valid="{}"))[0])


def test_the_shipped_configuration_runs(images, tmp_path, monkeypatch):
    """Two steps of configs/vq/runs/vq_cpu.yaml, at a reduced batch and width."""
    monkeypatch.chdir(ROOT)
    changes = {
        "task.train": json.dumps([images]),
        "task.model_overrides": '{"width": 8, "blocks": 1, "codes": 64}',
        "output": str(tmp_path / "run"),
        "steps": "2",
        "batch.size": "4",
        "batch.micro_size": "4",
        "loader.workers": "0",
        "telemetry.tensorboard": "false",
    }
    words = [word for name, value in changes.items() for word in (f"--{name}", value)]
    train(parse(["--config", "configs/vq/runs/vq_cpu.yaml", *words])[0])
    assert load_visual_tokenizer(tmp_path / "run").image_size == 64
