"""The visual-sentence task: loss, published figures, and what leaves (docs/methods/delvm.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from arch.__main__ import main as arch_main
from arch.delvm.factorised_embedding import FactorisedEmbedding
from arch.pangu_pi.load_weights import load_causal_lm
from pretrain.command_line import parse
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.losses.visual_sentences import label_images, position_losses, sentence_means
from pretrain.schedule import ScheduleConfig
from pretrain.tasks.visual_sentences import VisualSentenceTask, check_causality
from pretrain.trainer import train
from tests.pretrain.conftest import ROOT, rows
from tests.pretrain.visual_cases import CODES, IMAGES, SHAPE, make_tokenizer, write_pairs
from tokenizer.visual.load import load_visual_tokenizer

STEPS, N = 6, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A shape, and shards of two tasks: shifts of the codes by one and by two."""
    folder = tmp_path_factory.mktemp("visual")
    (folder / "shape.yaml").write_text(yaml.safe_dump(SHAPE))
    tokenizer = make_tokenizer()
    write_pairs(folder / "one", tokenizer, 1)
    write_pairs(folder / "two", tokenizer, 2, count=12, seed=1)
    write_pairs(folder / "valid", tokenizer, 1, count=10, seed=2)
    return folder


def make(folder: Path, **changes: Any) -> VisualSentenceTask:
    settings = {"model": str(folder / "shape.yaml"), "train": [str(folder / "one"), str(folder / "two")]}
    valid = {"valid": {"one": str(folder / "valid")}, "images_per_sentence": IMAGES}
    return VisualSentenceTask(**{**settings, **valid, **changes})


def batch_of(task: VisualSentenceTask, count: int = 3) -> dict[str, torch.Tensor]:
    (source, *_), _ = task.training_sources()
    return task.collate([source.sample(number) for number in range(count)])


def arguments(folder: Path, output: Path, **changes: Any) -> list[str]:
    settings = {
        "task": "pretrain.tasks.VisualSentenceTask",
        "task.model": str(folder / "shape.yaml"),
        "task.train": json.dumps([str(folder / "one"), str(folder / "two")]),
        "task.valid": json.dumps({"one": str(folder / "valid")}),
        "task.images_per_sentence": IMAGES,
        "task.passes": 2,
        "output": output,
        "steps": STEPS,
        "batch.size": 8,
        "batch.micro_size": 4,
        "optimizer.lr": 0.01,
        "checkpoint.every": 3,
        "validation.every": STEPS,
        "telemetry.every": 1,
        "telemetry.tensorboard": "false",
        "telemetry.progress_bar": "false",
    }
    settings.update({name.replace("__", "."): value for name, value in changes.items()})
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> Path:
    """A whole run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(parse(arguments(folder, run))[0])
    return run


@pytest.fixture(scope="module")
def checkpoint(finished) -> Path:
    return finished / f"checkpoints/step_{STEPS:08d}"


def test_untrained_models_guess_at_the_size_of_the_small_configurations(tmp_path):
    """ln 512 = 6.238 (test 7)."""
    write_pairs(tmp_path / "pairs", make_tokenizer(codes=512, patch=8, grid=8), count=8)
    for name in ("student_cpu", "pangu_pi_cpu"):
        task = VisualSentenceTask(str(ROOT / f"configs/delvm/models/{name}.yaml"), [str(tmp_path / "pairs")])
        output = task.loss(task.build_model(0), batch_of(task, 1))
        assert float(output.total.detach()) / 511 == pytest.approx(math.log(512), abs=0.05)
        assert task.units_per_sample() == (511, "tokens") and int(output.per_sample_weight.sum()) == 511


def test_code_zero_is_a_target_like_any_other(folder):
    task = make(folder)
    model = task.build_model(0)
    batch = batch_of(task, 2) | {"labels": torch.zeros(2, IMAGES * N - 1, dtype=torch.int64)}
    output = task.loss(model, batch)
    assert task.weight(batch) == 2 * (IMAGES * N - 1) == float(output.per_sample_weight.sum())
    output.total.backward()
    assert output.total > 0 and model.lm_head.weight.grad[0].abs().max() > 0


def test_metrics_are_means_over_their_images_however_the_batch_is_cut(folder):
    task = make(folder)
    model = task.build_model(0).eval()
    batch = batch_of(task, 4)
    tokens = position_losses(model, batch)
    losses, labels = tokens["loss"].numpy(), batch["labels"].numpy()
    images = np.array([(place + 1) // N for place in range(IMAGES * N - 1)])
    assert label_images(IMAGES * N - 1, N).tolist() == images.tolist()
    output = task.loss(model, batch)
    expected = {
        "loss_targets": losses[:, images % 2 == 1].mean(),
        "loss_last_target": losses[:, images == IMAGES - 1].mean(),
        "accuracy": (model(batch["input_ids"]).logits.argmax(-1).numpy() == labels).mean(),
    }
    assert {name: float(value) for name, value in output.metrics.items()} == pytest.approx(expected, rel=1e-5)
    halves = [position_losses(model, {k: v[i : i + 2] for k, v in batch.items()})["loss"] for i in (0, 2)]
    whole = sentence_means(torch.cat(halves), N)
    assert float(whole["targets"]) == pytest.approx(expected["loss_targets"], rel=1e-6)
    with pytest.raises(ValueError, match="no whole number of images"):
        label_images(IMAGES * N, N)


def test_a_changed_token_moves_nothing_before_it_and_no_other_sentence(folder):
    task = make(folder)
    model = task.build_model(0).eval()
    ids = batch_of(task, 3)["input_ids"]
    changed = ids.clone()
    changed[1, 9] = (changed[1, 9] + 1) % CODES
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[1, :9], after[1, :9]) and not torch.equal(before[1, 9:], after[1, 9:])
    assert torch.equal(before[[0, 2]], after[[0, 2]])


@pytest.mark.parametrize(
    "changes", [{}, {"initialisation": "model", "model_overrides": {"init_scheme": "zero_output"}}]
)
def test_a_mask_that_looks_ahead_is_caught(folder, changes):
    """Also at a start where no attention has an effect yet: future ids reach it by attention alone."""
    task = make(folder, **changes)
    model, batch = task.build_model(0).eval(), batch_of(task)
    assert "moves no earlier token" in check_causality(model, batch, N)
    honest = model.model.forward
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    open_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    model.model.forward = lambda **given: honest(**given | {"attention_mask": open_mask})
    with pytest.raises(RuntimeError, match="attention looks ahead"):
        check_causality(model, batch, N)


def test_a_run_learns_validates_and_says_what_it_is(finished):
    losses = [row["loss"] for row in rows(finished, "train")]
    assert losses[0] == pytest.approx(math.log(CODES), abs=0.05) and losses[-1] < losses[0]
    (valid,) = rows(finished, "valid")
    assert valid["perplexity/one"] == pytest.approx(math.exp(valid["loss/one"]))
    assert {"accuracy/one", "loss_targets/one", "loss_last_target/one"} <= valid.keys()
    audit = json.loads((finished / "audit.json").read_text())
    assert audit["input embedding"] == f"frozen codebook {CODES} x 12, projected to 32"
    assert "moves no earlier token" in audit["causality"] and audit["codes"].startswith(f"{CODES}, no other")
    assert f"{IMAGES} images = {IMAGES * N} tokens" in audit["sentence"]


def test_a_checkpoint_is_the_folded_model_in_plain_transformers(folder, finished, checkpoint):
    names = set(load_file(checkpoint / "model.safetensors"))
    assert "model.embed_tokens.weight" in names and not any("codebook" in name for name in names)
    assert load_visual_tokenizer(checkpoint / "tokenizer").hash == make_tokenizer().hash
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert [config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")] == [None, None, None]
    task = make(folder)
    model = task.load_model(checkpoint).eval()
    source = task.validation_sources()["one"]
    batch = task.collate([source.sample(number) for number in range(len(source))])
    mean = position_losses(model, batch)["loss"].mean().item()
    assert mean == pytest.approx(rows(finished, "valid")[-1]["loss/one"], rel=1e-5)


def test_the_export_command_takes_the_visual_tokenizer_along(finished, checkpoint, tmp_path):
    out = tmp_path / "export"
    for extra in ([], ["--overwrite", "true"]):
        assert arch_main(["export", "--model", str(finished), "--out", str(out), *extra]) == 0
    assert load_visual_tokenizer(out / "tokenizer").hash == make_tokenizer().hash
    plain, ours = LlamaForCausalLM.from_pretrained(out).eval(), load_causal_lm(checkpoint)
    assert plain.config.rms_norm_eps == 1e-5
    ids = torch.randint(CODES, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(ids).logits, ours(ids).logits)


def test_generation_makes_exactly_the_ids_of_one_image(folder, checkpoint):
    model = load_causal_lm(checkpoint)
    prompt = batch_of(make(folder), 2)["input_ids"][:, : 3 * N]
    settings = {"min_new_tokens": N, "max_new_tokens": N, "do_sample": False}
    made, again = (model.generate(prompt, **settings) for _ in range(2))
    assert made.shape == (2, 4 * N) and torch.equal(made, again) and int(made.max()) < CODES
    cached = model.generate(prompt, **settings, output_logits=True, return_dict_in_generate=True).logits
    whole = model(made).logits[:, 3 * N - 1 : -1]
    torch.testing.assert_close(torch.stack(cached, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_factorised_model_continues_from_a_folded_one(folder, checkpoint):
    task = make(folder, initial_weights=str(checkpoint))
    model, folded = task.build_model(0).eval(), load_causal_lm(checkpoint)
    assert isinstance(model.model.embed_tokens, FactorisedEmbedding)
    ids = batch_of(task)["input_ids"]
    torch.testing.assert_close(model(ids).logits, folded(ids).logits, rtol=1e-3, atol=1e-5)


def test_only_what_trains_is_in_the_parameter_groups(folder):
    from pretrain.config import OptimizerConfig
    from pretrain.optimizers.optimizer import parameter_groups

    task = make(folder)
    model = task.build_model(0)
    for name, group in (("adamw", "decayed"), ("muon", "decayed")):
        groups = {
            g.name: g for g in parameter_groups(model, task.undecayed_parameters(model), OptimizerConfig(name=name))
        }
        assert "model.embed_tokens.projection.weight" in groups[group].parameter_names
        assert not any("codebook" in n for g in groups.values() for n in g.parameter_names)


def _other_tokenizer(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {"train": [str(write_pairs(tmp_path / "other", make_tokenizer(seed=9)))]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda f, t: {"train": []}, r"task\.train is empty"),
        (lambda f, t: {"train": [str(t)]}, "is this a directory of image shards"),
        (lambda f, t: {"model_overrides": {"vocab_size": 64}}, "has 32 codes, the model a vocabulary of 64"),
        (lambda f, t: {"model_overrides": {"tie_word_embeddings": True}}, "ties its head"),
        (lambda f, t: {"model_overrides": {"init_scheme": "zero_output"}}, "init_scheme 'zero_output' would be lost"),
        (_other_tokenizer, "different tokenizers cannot be mixed"),
    ],
)
def test_what_cannot_be_is_refused(folder, tmp_path, changes: Callable[..., dict[str, Any]], message):
    with pytest.raises(ConfigurationError, match=message):
        make(folder, **changes(folder, tmp_path)).training_sources()


def test_another_tokenizer_neither_teaches_nor_continues(folder, finished, checkpoint, tmp_path):
    for name, shift in (("one", 1), ("valid", 1)):
        write_pairs(tmp_path / name, make_tokenizer(seed=9), shift)
    (tmp_path / "shape.yaml").write_text(yaml.safe_dump(SHAPE))
    changed = {"train": [str(tmp_path / "one")], "valid": {"one": str(tmp_path / "valid")}}
    with pytest.raises(ConfigurationError, match=r"task\.teacher .*: its tokenizer is"):
        make(tmp_path, **changed, teacher=str(checkpoint)).training_sources()
    settings = {f"task__{name}": json.dumps(value) for name, value in changed.items()}
    with pytest.raises(CheckpointError, match="tokenizer"):
        train(parse(arguments(folder, finished, **settings))[0])


def test_the_schedule_of_the_paper(monkeypatch):
    """LR peak/224 at step 0, the peak at step 223, 1.5e-5 at the end (test 17)."""
    monkeypatch.chdir(ROOT)
    for name in ("paper_300m", "kd_1b_to_300m"):
        config = parse(["--config", f"configs/delvm/runs/{name}.yaml"])[0]
        schedule: ScheduleConfig = config.schedule
        peak = config.optimizer.lr
        assert config.steps == 40_000 and peak == 1.5e-4 and config.batch.size * 2048 == 262_144
        rates = [peak * schedule.factor(step, config.steps) for step in (0, 223, 224, config.steps - 1)]
        assert rates[:2] == pytest.approx([peak / 224, peak], rel=1e-12)
        assert rates[2] <= peak and rates[3] == pytest.approx(1.5e-5, rel=1e-9)
        assert max(schedule.factor(step, config.steps) for step in range(400)) == 1.0
