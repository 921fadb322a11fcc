"""Text recognition in the shared trainer: the loss, its exports, and what it refuses."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from arch.parseq.decoding import recognise
from data_pipeline.words.stores import LmdbWriter
from data_pipeline.words.synthetic import SynthConfig, WordPainter
from pretrain.command_line import parse
from pretrain.errors import ConfigurationError
from pretrain.schedule import ScheduleConfig
from pretrain.tasks.word_recognition import WordRecognitionTask, load_recogniser
from pretrain.trainer import train
from tests.data_pipeline.word_cases import write_lmdb, write_parquet
from tokenizer.characters import CHARSETS

SHAPE = {
    "width": 16, "encoder_layers": 1, "encoder_heads": 2, "decoder_heads": 2, "max_length": 8, "dropout": 0.0,
    "image_height": 16, "image_width": 32, "patch_height": 8, "patch_width": 8,
}  # fmt: skip
STEPS_BY_HEART = 150
LABELS = ["Hello", "world", "Cafe9", "20262", "Itsme", "abcdefg", "deers", "river"]


@pytest.fixture
def shape(tmp_path: Path) -> str:
    path = tmp_path / "shape.yaml"
    path.write_text(json.dumps(SHAPE))
    return str(path)


@pytest.fixture
def words(tmp_path: Path) -> str:
    return str(write_lmdb(tmp_path / "words", LABELS))


def make(shape: str, words: str, **changes: Any) -> WordRecognitionTask:
    return WordRecognitionTask(**{"model": shape, "train": [words], "charset": "36", **changes})


def arguments(shape: str, words: str, output: Path, **changes: Any) -> list[str]:
    settings = {
        "task": "pretrain.tasks.WordRecognitionTask",
        "task.model": shape,
        "task.train": json.dumps([words]),
        "task.valid": json.dumps({"held_out": words}),
        "task.charset": "36",
        "task.copies": 3,
        "output": output,
        "steps": 6,
        "batch.size": 8,
        "batch.micro_size": 2,
        "optimizer.lr": 0.01,
        "checkpoint.every": 2,
        "validation.every": 6,
        "telemetry.every": 1,
        "telemetry.tensorboard": "false",
        "telemetry.progress_bar": "false",
    }
    settings.update({name.replace("__", "."): value for name, value in changes.items()})
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def batch_of(task: WordRecognitionTask, numbers: list[int], step: int | None = None) -> dict[str, torch.Tensor]:
    (source,), _ = task.training_sources()
    batch = task.collate([source.sample(number) for number in numbers])
    return batch if step is None else {**batch, "step": torch.tensor(step)}


@pytest.mark.parametrize("orderings", [1, 2, 6])
def test_the_loss_is_that_of_a_loop_over_orderings_samples_and_positions(shape, words, orderings):
    task = make(shape, words, orderings=orderings)
    model = task.build_model(0).double().train()
    batch = batch_of(task, [0, 5, 3], step=7)
    ids, pad, end = batch["ids"], task.tokenizer.pad, task.tokenizer.eos
    rows_K = task._orderings(ids.shape[1] - 2, 7)
    logits = model(batch["image"].double() / 127.5 - 1, ids[:, :-1], rows_K)
    total, counted, per_sample = 0.0, 0, np.zeros(3)
    for row in range(len(rows_K)):
        for sample in range(3):
            for position in range(ids.shape[1] - 1):
                target = int(ids[sample, position + 1])
                if target == pad or (target == end and row > 1):
                    continue
                loss = -F.log_softmax(logits[sample, row, position], -1)[target].item()
                total, counted, per_sample[sample] = total + loss, counted + 1, per_sample[sample] + loss
    output = task.loss(model, batch)
    assert float(output.total) == pytest.approx(total, rel=1e-6)
    assert task.weight(batch) == counted == int(output.per_sample_weight.sum())
    assert output.per_sample.numpy() == pytest.approx(per_sample, rel=1e-6)


def test_orderings_change_with_the_step_in_training_only(shape, words):
    task = make(shape, words)
    model = task.build_model(0)
    losses = lambda: {round(float(task.loss(model, batch_of(task, [0, 5], step)).total), 3) for step in range(4)}  # noqa: E731
    assert len(losses()) == 4
    model.eval()
    assert len(losses()) == 1


def test_untrained_models_guess(shape, words):
    task = make(shape, words)
    output = task.loss(task.build_model(0), batch_of(task, list(range(8))))
    assert float(output.total) / float(output.per_sample_weight.sum()) == pytest.approx(math.log(37), abs=0.35)


def test_an_export_reads_like_the_run(shape, words, tmp_path):
    train(parse(arguments(shape, words, tmp_path / "run"))[0])
    checkpoint = tmp_path / "run/checkpoints/step_00000006"
    model, tokenizer = load_recogniser(checkpoint)
    task = make(shape, words)
    again = task.load_model(checkpoint).eval()
    images = batch_of(task, [0, 1])["image"].float() / 127.5 - 1
    assert tokenizer.characters == task.tokenizer.characters
    assert torch.equal(recognise(model, images), recognise(again, images))
    start = make(shape, words, initial_weights=str(tmp_path / "run")).build_model(0).eval()
    assert torch.equal(recognise(start, images), recognise(again, images))
    (checkpoint / "parseq.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a text recogniser"):
        load_recogniser(checkpoint)


@pytest.mark.long
@pytest.mark.slow
def test_a_small_model_learns_drawn_words_by_heart(tmp_path):
    """64 drawn words: all read left to right, nine of ten all at once."""
    (tmp_path / "list.txt").write_text("sun moon star rain wind snow fire tree leaf root")
    shape = {**SHAPE, "width": 48, "encoder_layers": 2, "image_width": 64, "stem": "convolution"}
    (tmp_path / "shape.yaml").write_text(json.dumps({**shape, "initialisation": "narrow"}))
    painter = WordPainter(SynthConfig([str(tmp_path / "list.txt")], 64, longest=8, digits=0.0), CHARSETS["36"])
    with LmdbWriter(tmp_path / "drawn") as writer:
        for number in range(64):
            text, image = painter.draw(number)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            writer.add(buffer.getvalue(), text)
    settings = {
        "task.copies": 0,
        "task.valid": "{}",
        "steps": STEPS_BY_HEART,
        "batch.size": 32,
        "batch.micro_size": 32,
        "optimizer.lr": 0.003,
        "optimizer.weight_decay": 0,
        "checkpoint.every": STEPS_BY_HEART,
        "telemetry.every": 100,
    }
    config = parse(arguments(str(tmp_path / "shape.yaml"), str(tmp_path / "drawn"), tmp_path / "run", **settings))[0]
    train(config)
    model, tokenizer = load_recogniser(tmp_path / f"run/checkpoints/step_{STEPS_BY_HEART:08d}")
    task = config.task
    assert isinstance(task, WordRecognitionTask)
    batch = batch_of(task, list(range(64)))
    images, labels = batch["image"].float() / 127.5 - 1, [tokenizer.decode(ids) for ids in batch["ids"].numpy()]
    for mode, least in (("autoregressive", 64), ("parallel", 58)):
        read = [tokenizer.decode(ids) for ids in recognise(model, images, mode, refinements=0).argmax(-1).numpy()]
        assert sum(have == want for have, want in zip(read, labels, strict=True)) >= least


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": []}, "task.train is empty"),
        ({"orderings": 3}, "task.orderings is 3"),
        ({"charset": "37"}, "task.charset: charset '37'"),
        ({"model": "no.yaml"}, "task.model or task.model_overrides: no.yaml"),
        ({"model_overrides": {"widht": 3}}, "unknown field 'widht'"),
        ({"initial_weights": "nowhere"}, "task.initial_weights: nowhere"),
    ],
)
def test_what_cannot_be_is_refused(shape, words, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make(shape, words, **changes).build_model(0)


def test_a_mistyped_field_of_the_drawn_words_is_named(shape, words, tmp_path):
    extra = {"task__synthetic__wrods": "[]", "task__synthetic__size": 3}
    with pytest.raises(ConfigurationError, match=r"'wrods' of .*WordRecognitionTask; did you mean 'synthetic\.words'"):
        parse(arguments(shape, words, tmp_path / "run", **extra))


def test_drawn_words_without_a_word_list_are_refused(shape, words, tmp_path):
    from data_pipeline.errors import SourceError

    extra = {"task__synthetic": '{"words": [], "size": 3, "longest": 8}'}
    with pytest.raises(SourceError, match=r"synthetic\.words is empty"):
        train(parse(arguments(shape, words, tmp_path / "run", **extra))[0])


def test_another_charset_does_not_continue_a_run(shape, words, tmp_path):
    from pretrain.errors import CheckpointError

    train(parse(arguments(shape, words, tmp_path / "run", steps=2))[0])
    with pytest.raises(CheckpointError, match="charset"):
        train(parse(arguments(shape, words, tmp_path / "run", task__charset="62"))[0])


def test_a_damaged_image_ends_the_run_by_name(shape, tmp_path):
    from tokenizer.inputs.images import ImageError

    path = write_parquet(tmp_path / "x.parquet", ["a", "b"], [b"", b"junk"])
    with pytest.raises(ImageError, match=r"x\.parquet: row [01]"):
        train(parse(arguments(shape, str(path), tmp_path / "run", task__valid="{}"))[0])


def test_the_one_cycle_schedule_of_the_specification():
    """Warm-up to 7.5 % from 1/25 of the peak, then down to 1/250,000 of it; 0.16967 of the peak at 75 %."""
    schedule = ScheduleConfig(name="onecycle", warmup_fraction=0.075, final_ratio=4e-6)
    steps = 100_000
    assert schedule.factor(0, steps) == pytest.approx(1 / 25)
    assert schedule.factor(7_499, steps) == pytest.approx(1.0)
    assert schedule.factor(75_000, steps) == pytest.approx(0.16967, abs=2e-5)
    assert schedule.factor(steps - 1, steps) == pytest.approx(4e-6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=400, pct_start=0.075, cycle_momentum=False, final_div_factor=1e4
    )
    for step in range(400):
        assert schedule.factor(step, 400) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step() if step < 399 else None
