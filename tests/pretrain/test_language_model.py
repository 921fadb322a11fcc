"""The language-model task in whole runs: validation, audit, hooks, replay, launchers, compile, loadable checkpoints."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from typing import Any

import pytest
import torch

from arch.pangu_pi.load_weights import load_causal_lm
from data_pipeline.__main__ import main as data_pipeline_main
from pretrain.command_line import parse
from pretrain.config import OptimizerConfig
from pretrain.engine import Engine
from pretrain.errors import ConfigurationError
from pretrain.hooks import EvaluationHook
from pretrain.tasks.language_model import LanguageModelTask, check_document_isolation
from pretrain.trainer import Trainer, train
from tests.pretrain.conftest import TINY, free_port, launch, rows


class CountParameters(EvaluationHook):
    """A hook that looks at the model, its mode and the context."""

    every = 100

    def __call__(self, *, model: torch.nn.Module, context: dict[str, Any], **_: Any) -> dict[str, dict[str, float]]:
        assert not model.training and not torch.is_grad_enabled()
        return {
            "shape": {"parameters": sum(p.numel() for p in model.parameters()), "pieces": len(context["tokenizer"])}
        }


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A finished run of a tiny model and its directory."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(json.dumps(TINY))
    arguments = [
        *("--task", "pretrain.tasks.LanguageModelTask", "--task.model", str(folder / "tiny.yaml")),
        *(
            "--task.train",
            json.dumps([str(corpus["train"])]),
            "--task.valid",
            json.dumps({"all": str(corpus["valid"])}),
        ),
        *("--task.sequence_length", "32", "--output", str(folder / "run"), "--steps", "40", "--batch.size", "8"),
        *("--batch.micro_size", "4", "--optimizer.lr", "0.01", "--checkpoint.every", "20", "--validation.every", "20"),
        *("--telemetry.every", "1", "--telemetry.progress_bar", "false"),
        *("--hooks", json.dumps([{"class_path": "tests.pretrain.test_language_model.CountParameters"}])),
    ]
    train(parse(arguments)[0])
    return folder / "run", arguments


def test_it_learns_and_reports_bits_per_byte(finished):
    run, _ = finished
    losses = [row["loss"] for row in rows(run, "train")]
    assert losses[0] == pytest.approx(math.log(384), abs=0.3) and losses[-1] < losses[0] - 1
    first, last = rows(run, "valid")
    assert last["loss"] < first["loss"]
    task = parse(finished[1])[0].task
    source = task.validation_sources()["all"]
    assert last["bits_per_byte/all"] == pytest.approx(last["loss/all"] / math.log(2) / source.bytes_per_label)
    assert last["bits_per_byte"] == last["bits_per_byte/all"]  # the mean over one held-out source
    assert last["perplexity/all"] == pytest.approx(math.exp(last["loss/all"]))


def test_audit_says_what_the_run_is(finished):
    audit = json.loads((finished[0] / "audit.json").read_text())
    assert "isolates" in audit["document mask"] and "packed_cpu" in audit["attention"]
    assert "weight decay 0.1" in audit["group decayed"] and "weight decay 0" in audit["group undecayed"]


def test_hooks_see_the_model_in_eval_mode_at_their_interval_and_at_the_end(finished):
    (row,) = rows(finished[0], "eval")
    assert row["step"] == 40 and row["results"]["shape"]["pieces"] == 384


def test_throughput_follows_the_stated_formula(finished):
    row = rows(finished[0], "train")[-1]
    task = parse(finished[1])[0].task
    assert row["tflops"] == pytest.approx(row["tokens_per_second"] / 32 * task.flops_per_sample() / 1e12)
    assert row["tokens"] == 40 * 8 * 32 and row["mfu"] > 0


def test_a_checkpoint_is_a_model_that_loads_without_the_run(finished, corpus):
    run, arguments = finished
    model = load_causal_lm(run / "checkpoints" / "step_00000040").eval()
    task = parse(arguments)[0].task
    source = task.validation_sources()["all"]
    total = weight = 0.0
    with torch.no_grad():
        for index in range(len(source)):
            output = task.loss(model, task.collate([source.sample(index)]))
            total, weight = total + float(output.total), weight + float(output.per_sample_weight.sum())
    assert total / weight == pytest.approx(rows(run, "valid")[-1]["loss/all"], rel=1e-5)


def test_replay_prints_the_documents_of_a_step(finished, capsys):
    assert data_pipeline_main(["replay", "--run", str(finished[0]), "--step", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 8


def test_a_leaking_mask_is_caught(finished):
    task = parse(finished[1])[0].task
    model = task.build_model(0).eval()
    trainer = Trainer(parse(finished[1])[0])
    batch = task.collate([trainer.source.sample(int(i)) for i in range(8)])
    assert "isolates" in check_document_isolation(model, batch)
    leaky = model.model.forward
    model.model.forward = lambda position_ids, **kw: leaky(position_ids=torch.arange(32).unsqueeze(0), **kw)
    with pytest.raises(RuntimeError, match="the document mask leaks"):
        check_document_isolation(model, batch)


def test_errors_of_the_task_name_the_field(corpus, tmp_path):
    shape = tmp_path / "small.yaml"
    shape.write_text(
        "{vocab_size: 300, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
    )
    with pytest.raises(
        ConfigurationError, match=r"384 pieces, the model only 300 embeddings; set task\.model_overrides"
    ):
        LanguageModelTask(str(shape), [str(corpus["train"])], sequence_length=32).training_sources()
    with pytest.raises(ConfigurationError, match=r"unknown field 'hiden_size'; did you mean 'hidden_size'"):
        LanguageModelTask(str(shape), [str(corpus["train"])], model_overrides={"hiden_size": 3})
    with pytest.raises(ConfigurationError, match=r"task\.train is empty"):
        LanguageModelTask(str(shape), [])


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ({"intermediate_size": 64}, "intermediate_size is 48, the run's model has 64"),
        ({"num_attention_heads": 4}, "num_attention_heads"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"rope_theta": 5e5}, "rope_parameters"),
        ({"shortcut_reduction": 8}, "shortcut_reduction"),
        ({"series_scope": "scalar"}, "series_scope"),
        ({"qk_norm": True}, "qk_norm"),
    ],
)
def test_initial_weights_of_another_model_are_refused_by_its_field(finished, corpus, tmp_path, override, field):
    """The run would train the shape of its weights, and say that it has its own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(TINY))
    start = partial(LanguageModelTask, str(path), [str(corpus["train"])], initial_weights=str(finished[0]))
    with pytest.raises(ConfigurationError, match=rf"task\.initial_weights .*{field}"):
        start(model_overrides=override).build_model(0)
    with pytest.raises(ConfigurationError, match=field):
        start(model_overrides=override).skeleton()
    start(model_overrides={"init_scheme": "zero_output"}).build_model(0)


def test_what_follows_from_a_field_also_follows_its_override(corpus, tmp_path):
    shape = tmp_path / "small.yaml"
    shape.write_text(
        "{vocab_size: 384, hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 8, intermediate_size: 32}"
    )
    task = LanguageModelTask(str(shape), [str(corpus["train"])], model_overrides={"num_attention_heads": 2})
    config = task.model_config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 2, 32)
    with pytest.raises(ConfigurationError, match=r"task\.model_overrides: .*num_key_value_heads 3 does not divide"):
        LanguageModelTask(str(shape), [str(corpus["train"])], model_overrides={"num_key_value_heads": 3})


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun_trains_on_the_same_samples_to_the_same_loss_as_this_process(tmp_path, tiny_arguments):
    """Promise 2 with another launcher; test_faults.py has deepspeed's."""
    settings = {"steps": 8, "validation__every": 8, "checkpoint__every": 8}
    one, two = (tmp_path / name for name in ("plain", "torchrun"))
    train(parse(tiny_arguments(one, **settings))[0])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    arguments = tiny_arguments(two, batch__micro_size=4, engine__zero_stage=2, **settings)
    log = tmp_path / "log"
    process = launch([*torchrun, str(free_port()), "pretrain/train.py", *arguments], log)
    assert process.wait(timeout=900) == 0, log.read_text()[-3000:]
    expected = [row["loss"] for row in rows(one, "train")]
    assert [row["loss"] for row in rows(two, "train")] == pytest.approx(expected, rel=1e-4)
    assert rows(two, "valid")[-1]["loss"] == pytest.approx(rows(one, "valid")[-1]["loss"], rel=1e-4)


def test_the_z_loss_is_learned_and_not_reported(tmp_path):
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY | {"final_logit_softcapping": 0.2}))
    outputs, gradients = [], []
    for z_loss in (0.0, 0.1):
        task = LanguageModelTask(str(tmp_path / "tiny.yaml"), ["nowhere"], sequence_length=32, z_loss=z_loss)
        torch.manual_seed(0)
        model, batch = task.new_model().train(), task.example_batch(2)
        outputs.append(task.loss(model, batch))
        outputs[-1].total.backward()
        gradients.append(model.lm_head.weight.grad)
        assert "z_loss" not in task.loss(model.eval(), batch).metrics
        capped_BSV = model(batch["input_ids"]).logits
        losses = torch.nn.functional.cross_entropy(capped_BSV.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        torch.testing.assert_close(outputs[-1].total, losses)
    plain, output = outputs
    torch.testing.assert_close(output.total, plain.total)
    torch.testing.assert_close(output.per_sample, plain.per_sample)
    assert output.metrics["z_loss"] == pytest.approx(0.1 * math.log(384) ** 2, rel=0.1) and not plain.metrics
    assert (gradients[1] - gradients[0]).norm() > 0.03 * gradients[0].norm()
    with pytest.raises(ConfigurationError, match=r"task\.z_loss is -1"):
        LanguageModelTask(str(tmp_path / "tiny.yaml"), ["nowhere"], z_loss=-1)


@pytest.mark.long
def test_muon_trains_alike_at_every_stage_and_spares_what_it_should(tmp_path, tiny_arguments):
    settings = {"optimizer__name": "muon", "steps": 6, "validation__every": 6, "checkpoint__every": 6}
    runs = []
    for stage in (0, 1, 2, 3):
        run = tmp_path / str(stage)
        train(parse(tiny_arguments(run, engine__zero_stage=stage, **settings))[0])
        runs.append([row["loss"] for row in rows(run, "train")])
    for other in runs[1:]:
        assert runs[0] == pytest.approx(other, rel=1e-3)
    assert runs[0][-1] < runs[0][0]


@pytest.mark.parametrize("option", ["engine.activation_checkpointing", "engine.compile"])
def test_recomputation_and_compilation_change_nothing_but_rounding(tmp_path, tiny_arguments, monkeypatch, option):
    # Without inductor's C++, which takes a minute to compile; test_compilation.py has that.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.utils.counters.clear()
    settings = {"steps": 3, "validation__every": 3, "checkpoint__every": 3}
    losses = []
    for value in ("false", "true"):
        run = tmp_path / value
        train(parse([*tiny_arguments(run, **settings), f"--{option}", value])[0])
        losses.append([row["loss"] for row in rows(run, "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert bool(torch._dynamo.utils.counters["stats"]) == (option == "engine.compile")


@pytest.mark.long
def test_bf16_trains_alike_with_and_without_zero(tmp_path, tiny_arguments):
    settings = {"steps": 2, "engine__precision": "bf16", "validation__every": 2, "checkpoint__every": 2}
    losses = []
    for stage in (0, 1):
        train(parse(tiny_arguments(tmp_path / str(stage), engine__zero_stage=stage, **settings))[0])
        losses.append([row["loss"] for row in rows(tmp_path / str(stage), "train")])
    assert losses[0][0] == losses[1][0] and losses[0] == pytest.approx(losses[1], rel=1 / 256)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_rule_sets_the_rate_when_none_is_given(tmp_path, tiny_arguments, name):
    arguments = tiny_arguments(tmp_path)
    place = arguments.index("--optimizer.lr")
    trainer = Trainer(parse([*arguments[:place], *arguments[place + 2 :], "--optimizer.name", name])[0])
    engine = Engine(trainer.config, trainer.task, trainer.world)
    batch, width = OptimizerConfig().batch_rule, OptimizerConfig().width_rule
    expected = batch.learning_rate(8 * 32) if name == "adamw" else width.learning_rate(TINY["hidden_size"])
    assert engine.peak_lr == pytest.approx(expected)
    engine.close()
