"""CLIP4STR in the shared trainer: two losses, rates of its own for the decoders, and its exports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from arch.clip4str.configuration import Clip4StrConfig
from arch.clip4str.decoding import recognise
from arch.clip4str.model import Clip4Str
from pretrain.command_line import parse
from pretrain.config import OptimizerConfig
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.optimizers.optimizer import build_optimizer, parameter_groups
from pretrain.tasks.clip4str import Clip4StrTask, load_clip4str
from pretrain.trainer import Outcome, train
from tests.data_pipeline.word_cases import write_lmdb
from tests.pretrain.conftest import ROOT
from tests.pretrain.test_word_recognition import LABELS, batch_of
from tests.pretrain.test_word_recognition import arguments as word_arguments

SHAPE = {
    "width": 16, "decoder_heads": 2, "max_length": 8, "dropout": 0.0, "image_size": 16, "patch_size": 8,
    "vision_width": 16, "vision_layers": 1, "vision_heads": 2, "text_width": 8, "text_layers": 2, "text_heads": 2,
    "text_positions": 16, "frozen_text_layers": 1,
}  # fmt: skip


@pytest.fixture
def shape(tmp_path: Path) -> str:
    path = tmp_path / "shape.yaml"
    path.write_text(json.dumps(SHAPE))
    return str(path)


@pytest.fixture
def words(tmp_path: Path) -> str:
    return str(write_lmdb(tmp_path / "words", LABELS))


def make(shape: str, words: str, **changes: Any) -> Clip4StrTask:
    return Clip4StrTask(**{"model": shape, "train": [words], "charset": "62", **changes})


def arguments(shape: str, words: str, output: Path, **changes: Any) -> list[str]:
    own = {"task": "pretrain.tasks.Clip4StrTask", "task.charset": "62", "task.copies": 0, "steps": 4}
    return word_arguments(shape, words, output, **{**own, **changes})


def test_the_loss_is_that_of_both_branches_in_a_loop(shape, words):
    task = make(shape, words)
    model = task.build_model(0).train()
    batch = batch_of(task, [0, 5, 3], step=7)
    ids, pad, end = batch["ids"], task.tokenizer.pad, task.tokenizer.eos
    orderings = task._orderings(ids.shape[1] - 2, 7)
    branches = model(task.model_config.normalise(batch["image"]), ids[:, :-1], orderings)
    totals, counted = {"visual": 0.0, "cross": 0.0}, 0
    for row in range(len(orderings)):
        target = ids[:, 1:].clone()
        if row > 1:
            target[target == end] = pad
        n = int((target != pad).sum())
        counted += n
        for name, logits in branches._asdict().items():
            totals[name] += n * F.cross_entropy(logits[:, row].flatten(0, 1), target.flatten(), ignore_index=pad).item()
    output = task.loss(model, batch)
    assert output.total.item() == pytest.approx(sum(totals.values()), rel=1e-5)
    assert task.weight(batch) == counted == int(output.per_sample_weight.sum())
    assert {name: value.item() * counted for name, value in output.metrics.items()} == pytest.approx(
        {f"loss_{name}": total for name, total in totals.items()}, rel=1e-5
    )
    assert totals["visual"] / counted == pytest.approx(math.log(63), abs=0.4)


def test_the_published_recipe(tmp_path, monkeypatch):
    """At 1024 images the rule gives 1.68e-4, the decoders 3.192e-3; what is decayed, and what is not."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "bpe.txt.gz").touch()
    bpe = ["--task.bpe", str(tmp_path / "bpe.txt.gz"), "--task.clip", str(tmp_path)]
    config, _ = parse(["--config", "configs/ocr/runs/clip4str_b.yaml", *bpe])
    task, optimizer = config.task, config.optimizer
    assert isinstance(task, Clip4StrTask) and isinstance(task.model_config, Clip4StrConfig)
    assert optimizer.lr is None and config.batch.size == 1024
    lr = optimizer.batch_rule.learning_rate(config.batch.size * task.units_per_sample()[0])
    assert lr == pytest.approx(1.68e-4)
    with torch.device("meta"):
        model = Clip4Str(task.model_config, lambda ids: ids)
    groups = parameter_groups(model, task.undecayed_parameters(model), optimizer, task.learning_rate_factors(model))
    built = build_optimizer(groups, OptimizerConfig(), lr).param_groups
    assert {group["name"]: (round(group["lr"], 9), group["weight_decay"]) for group in built} == {
        "decayed": (1.68e-4, 0.2),
        "undecayed": (1.68e-4, 0.0),
        "decayed x19": (3.192e-3, 0.2),
        "undecayed x19": (3.192e-3, 0.0),
    }
    assert sum(p.numel() for group in groups for p in group.parameters) == 114_005_694
    spared = {name for group in groups if group.name == "undecayed x19" for name in group.parameter_names}
    assert {"visual_decoder.pos_queries", "cross_decoder.text_embed.embedding.weight"} <= spared


def test_frozen_parts_stay_and_a_checkpoint_reads_like_the_run(shape, words, tmp_path):
    whole = tmp_path / "whole"
    config = parse(arguments(shape, words, whole))[0]
    assert train(config) is Outcome.FINISHED
    left = load_file(whole / "checkpoints/step_00000004/model.safetensors")
    start = dict(config.task.build_model(config.seed).named_parameters())
    moved = {name for name, parameter in start.items() if not torch.equal(parameter, left[name])}
    frozen = {name for name, parameter in start.items() if not parameter.requires_grad}
    assert not moved & frozen and any("text_model.encoder.layers.1." in name for name in moved)
    rates = json.loads((whole / "audit.json").read_text())
    assert "lr 0.01," in rates["group decayed"] and "lr 0.19," in rates["group decayed x19"]

    checkpoint = whole / "checkpoints/step_00000004"
    model, tokenizer = load_clip4str(checkpoint)
    task = make(shape, words)
    images = task.model_config.normalise(batch_of(task, [0, 1])["image"])
    assert tokenizer.characters == task.tokenizer.characters and model.caption.charset == task.caption_charset
    assert torch.equal(recognise(model, images), recognise(task.load_model(checkpoint).eval(), images))
    with pytest.raises(CheckpointError, match="captions"):
        train(parse(arguments(shape, words, whole, task__caption_charset="94"))[0])
    (checkpoint / "clip4str.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a text recogniser"):
        load_clip4str(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bpe": "nowhere.gz"}, "task.bpe: nowhere.gz: no such file"),
        ({"clip": "nowhere"}, "name their file with task.bpe"),
        ({"caption_charset": "37"}, "task.caption_charset: charset '37'"),
        ({"decoder_lr_factor": 0.0}, "task.decoder_lr_factor is 0"),
        ({"model_overrides": {"widht": 3}}, "unknown field 'widht'"),
        ({"train": []}, "task.train is empty"),
    ],
)
def test_what_cannot_be_is_refused(shape, words, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make(shape, words, **changes)


def test_clip_s_tokens_travel_with_the_checkpoint(shape, words, tmp_path, real_data):
    bpe = real_data / "tokenizers" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    task = make(shape, words, bpe=str(bpe))
    model = task.build_model(0)
    task.save_pretrained(model, model.state_dict(), tmp_path)
    again, _ = load_clip4str(tmp_path)
    assert again.config.text_tokens == 49_408 and Path(again.caption.bpe).parent == tmp_path
    assert (tmp_path / bpe.name).read_bytes() == bpe.read_bytes()
