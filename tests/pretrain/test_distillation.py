"""Distillation (docs/methods/delvm.md: distillation), alone and in runs on text."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.pangu_pi.accounting import count_flops
from arch.pangu_pi.load_weights import WeightsError
from pretrain.command_line import parse
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.losses.chunked_cross_entropy import IGNORE_INDEX, CrossEntropy, linear_loss
from pretrain.losses.token_distillation import Distillation, DistillationConfig, divergence
from pretrain.tasks.language_model import LanguageModelTask
from pretrain.trainer import train
from tests.pretrain.conftest import TINY, rows

B, S, D, E, V = 2, 19, 8, 12, 37
CONFIGS = [
    DistillationConfig(),
    DistillationConfig(0.3, 1.7, 2.0),
    DistillationConfig(0.0, 1.0, 3.0, reverse=True),
    DistillationConfig(1.0, 0.5, 0.7, reverse=True),
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(logits: torch.Tensor, teacher: torch.Tensor, config: DistillationConfig) -> torch.Tensor:
    """The divergence of every token, by torch's own loss."""
    student, teacher = (F.log_softmax(x / config.temperature, -1) for x in (logits, teacher))
    first, second = (teacher, student) if config.reverse else (student, teacher)
    return config.temperature**2 * F.kl_div(first, second, log_target=True, reduction="none").sum(-1)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_divergence_and_its_gradient_are_those_of_torch(config):
    logits, teacher = draw(S, V).mul(3).requires_grad_(), draw(S, V, seed=1) * 3
    wanted = plain(logits, teacher, config)
    losses, gradient = divergence(logits.detach(), teacher, config.temperature, config.reverse)
    assert (losses - wanted).abs().max() < 1e-12
    assert (gradient - torch.autograd.grad(wanted.sum(), logits)[0]).abs().max() < 1e-12


def test_the_gradient_is_the_difference_of_the_distributions():
    logits, teacher, tau = draw(S, V) * 3, draw(S, V, seed=1) * 3, 2.5
    _, gradient = divergence(logits, teacher, tau)
    assert (gradient - tau * (F.softmax(logits / tau, -1) - F.softmax(teacher / tau, -1))).abs().max() < 1e-15


@pytest.mark.parametrize("reverse", [False, True])
def test_equal_logits_diverge_by_exactly_nothing(reverse):
    logits = draw(S, V).float() * 5
    losses, gradient = divergence(logits, logits.clone(), 1.7, reverse)
    assert not losses.any() and not gradient.any()


def batch() -> dict[str, Any]:
    labels = torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(3))
    labels[0, 4] = labels[1, -1] = IGNORE_INDEX
    return {
        "hidden": draw(B, S, D).requires_grad_(), "weight": draw(V, D, seed=1).requires_grad_(),
        "teacher_hidden": draw(B, S, E, seed=2), "teacher_weight": draw(V, E, seed=3), "labels": labels,
    }  # fmt: skip


def fused(data: dict[str, Any], config: DistillationConfig, chunk_elements: int) -> Any:
    criterion = Distillation(CrossEntropy(data["labels"]), data["teacher_hidden"], data["teacher_weight"], config)
    return linear_loss(data["hidden"], data["weight"], criterion, chunk_elements)


@pytest.mark.parametrize("chunk_elements", [1, V * 7, 2**22])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_chunks_give_the_loss_of_whole_logits_at_the_labelled_positions(config, chunk_elements):
    data = batch()
    logits, teacher = data["hidden"] @ data["weight"].T, data["teacher_hidden"] @ data["teacher_weight"].T
    valid = data["labels"] != IGNORE_INDEX
    truth = F.cross_entropy(logits[valid], data["labels"][valid], reduction="sum")
    kl = plain(logits, teacher, config) * valid
    wanted = config.weight_gt * truth + config.weight_kd * kl.sum()
    gradients = torch.autograd.grad(wanted * 0.3, (data["hidden"], data["weight"]))
    total, tokens = fused(data, config, chunk_elements)
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(tokens["divergence"], kl.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tokens["loss"].sum(), truth.detach(), rtol=1e-12, atol=0)
    assert not tokens["divergence"][~valid].any() and float(tokens["objective"].sum()) == pytest.approx(total.item())
    for ours, theirs in zip(torch.autograd.grad(total * 0.3, (data["hidden"], data["weight"])), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_z_loss_and_soft_caps_of_both_models_have_the_gradient_of_autograd(config):
    data = batch()
    labels, valid = data["labels"].clamp_min(0), data["labels"] != IGNORE_INDEX
    logits, teacher = data["hidden"] @ data["weight"].T, data["teacher_hidden"] @ data["teacher_weight"].T
    logits, teacher = 4 * torch.tanh(logits / 4), 7 * torch.tanh(teacher / 7)
    truth = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * valid
    added = config.weight_gt * 0.05 * logits.logsumexp(-1).square() * valid
    wanted = config.weight_gt * truth + added + config.weight_kd * plain(logits, teacher, config) * valid
    criterion = CrossEntropy(data["labels"], z_loss=0.05, softcap=4.0)
    criterion = Distillation(criterion, data["teacher_hidden"], data["teacher_weight"], config, 7.0)
    total, tokens = linear_loss(data["hidden"], data["weight"], criterion, V * 7)
    for name, value in {"loss": truth, "z_loss": added, "objective": wanted}.items():
        torch.testing.assert_close(tokens[name], value.detach(), rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, (data["hidden"], data["weight"])) for value in (total, wanted.sum()))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_unit_weights_train_like_twice_the_cross_entropy_against_the_mean_of_both_targets():
    data = batch()
    logits = (data["hidden"] @ data["weight"].T).detach().requires_grad_()
    targets = (
        F.one_hot(data["labels"].clamp_min(0), V) + F.softmax(data["teacher_hidden"] @ data["teacher_weight"].T, -1)
    ) / 2
    valid = data["labels"] != IGNORE_INDEX
    twice = 2 * F.cross_entropy(logits[valid], targets[valid], reduction="sum")
    wanted = torch.autograd.grad(twice, logits)[0] @ data["weight"]
    total, _ = fused(data, DistillationConfig(), V * 5)
    torch.testing.assert_close(torch.autograd.grad(total, data["hidden"])[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_kd": -1.0}, "weight_kd is -1"),
        ({"weight_gt": 0.0, "weight_kd": 0.0}, "nothing would be learned"),
        ({"temperature": 0.0}, "temperature is 0"),
    ],
)
def test_settings_without_meaning_are_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        DistillationConfig(**fields)


@pytest.fixture(scope="module")
def shape(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("shape") / "tiny.yaml"
    path.write_text(json.dumps(TINY | {"final_logit_softcapping": 0.5}))  # of the student, and of every teacher
    return str(path)


@pytest.fixture(scope="module")
def teacher(corpus, shape, tmp_path_factory) -> Path:
    """An untrained model of the student's shape in transformers format, its tokenizer beside it."""
    directory = tmp_path_factory.mktemp("teacher") / "model"
    task = make(corpus, shape)
    model = task.build_model(7)
    directory.mkdir()
    task.save_pretrained(model, model.state_dict(), directory)
    return directory


def make(corpus, shape, **changes: Any) -> LanguageModelTask:
    return LanguageModelTask(**{"model": shape, "train": [str(corpus["train"])], "sequence_length": 32, **changes})


def first_batch(task: LanguageModelTask) -> Any:
    (source,), _ = task.training_sources()
    return task.collate([source.sample(number) for number in range(3)])


def test_a_teacher_is_frozen_and_read_when_it_is_needed(corpus, shape, teacher, monkeypatch):
    task = make(corpus, shape, teacher=str(teacher))
    plain_task = make(corpus, shape)
    student = task.build_model(0).train()
    data = first_batch(task)
    assert task.teacher._model is None
    output = task.loss(student, data)
    frozen = task.teacher._model
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    (output.total / task.weight(data)).backward()
    assert all(p.grad is None for p in frozen.parameters()) and all(p.grad is not None for p in student.parameters())
    assert {id(p) for p in student.parameters()}.isdisjoint(id(p) for p in frozen.parameters())
    assert output.metrics.keys() == {"loss_gt", "loss_kd"} and float(output.metrics["loss_kd"]) > 0
    mean = float(output.total) / task.weight(data)
    assert mean == pytest.approx(float(output.metrics["loss_gt"] + output.metrics["loss_kd"]), rel=1e-6)
    student.train()
    task.loss(student, data)
    assert task.teacher._model is frozen and not frozen.training
    student.eval()
    frozen_output, expected = task.loss(student, data), plain_task.loss(student, data)
    assert torch.equal(frozen_output.total, expected.total) and not frozen_output.metrics
    assert pickle.loads(pickle.dumps(task.teacher))._model is None


def test_a_teacher_with_the_students_weights_changes_no_gradient(corpus, shape, teacher):
    task, alone = make(corpus, shape, teacher=str(teacher)), make(corpus, shape)
    student = task.load_model(teacher).train()
    gradients = []
    for one in (task, alone):
        output = one.loss(student, first_batch(one))
        output.total.backward()
        gradients.append([p.grad for p in student.parameters()])
        student.zero_grad(set_to_none=True)
        if one is task:
            assert float(output.metrics["loss_kd"]) == 0.0
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


def test_flops_and_identity_know_the_teacher(corpus, shape, teacher):
    task, alone = make(corpus, shape, teacher=str(teacher)), make(corpus, shape)
    extra = count_flops(task.teacher.config, 32).forward_per_token * 32
    assert task.flops_per_sample() == pytest.approx(alone.flops_per_sample() + extra)
    identity = task.identity()
    assert "teacher" not in alone.identity() and set(identity["teacher"]["files"]) == {
        "config.json",
        "model.safetensors",
    }
    warmer = make(corpus, shape, teacher=str(teacher), distillation=DistillationConfig(temperature=2.0))
    assert warmer.identity() != identity


def test_a_teacher_that_cannot_teach_is_refused_before_training(corpus, shape, teacher, tmp_path):
    for path, message in (
        (tmp_path / "nowhere", r"task\.teacher: .*nowhere"),
        (tmp_path, "neither a model"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make(corpus, shape, teacher=str(path)).training_sources()
    with pytest.raises(ConfigurationError, match=r"384 entries, the student's 400"):
        make(corpus, shape, teacher=str(teacher), model_overrides={"vocab_size": 400}).training_sources()
    PanguPiForCausalLM(PanguPiConfig(**TINY)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigurationError, match="no tokenizer lies beside it"):
        make(corpus, shape, teacher=str(tmp_path / "bare")).training_sources()
    with pytest.raises(ConfigurationError, match=r"task\.distillation is set without task\.teacher"):
        make(corpus, shape, distillation=DistillationConfig())
    other = make(corpus, shape, teacher=str(teacher))
    with pytest.raises(ConfigurationError, match=r"its tokenizer is .*, that of the training data another"):
        other.teacher.check(384, "another-tokenizer", other.hash_of_tokenizer)


def test_a_damaged_teacher_is_named_by_the_audit(corpus, shape, teacher, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(teacher, broken)
    (broken / "model.safetensors").write_bytes(b"junk")
    task = make(corpus, shape, teacher=str(broken))
    with pytest.raises(WeightsError, match="broken"):
        task.audit(task.build_model(0).eval(), first_batch(task))


def test_a_run_with_a_teacher_logs_both_losses_resumes_exactly_and_refuses_another(
    corpus, tiny_arguments, teacher, tmp_path
):
    settings = {"task.teacher": str(teacher), "task.distillation": '{"temperature": 2.0}'}
    common: dict[str, Any] = {**settings, "steps": 6, "checkpoint.every": 3, "validation.every": 6}
    train(parse(tiny_arguments(tmp_path / "whole", **common))[0])
    whole = rows(tmp_path / "whole", "train")
    for row in whole:
        # Metrics are means of micro-batches, the loss a mean of labels, of which packed rows differ by a few.
        assert row["loss"] == pytest.approx(row["loss_gt"] + row["loss_kd"], rel=0.01) and row["loss_kd"] > 0
    assert (
        "KL(teacher || student) at temperature 2" in json.loads((tmp_path / "whole/audit.json").read_text())["teacher"]
    )
    (valid,) = rows(tmp_path / "whole", "valid")
    assert valid["perplexity/all"] == pytest.approx(math.exp(valid["loss/all"]))
    assert "loss_kd/all" not in valid

    cut = parse(tiny_arguments(tmp_path / "cut", **common))[0]
    plain_loss, calls = cut.task.loss, []

    def dying(model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) > 18:  # four micro-batches a step: in step 5 of 6, after the checkpoint at step 3
            raise KeyboardInterrupt
        return plain_loss(model, batch)

    cut.task.loss = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    train(parse(tiny_arguments(tmp_path / "cut", **common))[0])
    assert [row["loss"] for row in rows(tmp_path / "cut", "train")] == [row["loss"] for row in whole]
    with pytest.raises(CheckpointError, match=r"task\.teacher\.temperature: 2\.0 -> 1\.0"):
        train(parse(tiny_arguments(tmp_path / "cut", **{**common, "task.distillation": '{"temperature": 1.0}'}))[0])
