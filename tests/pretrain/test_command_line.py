"""Configuration errors: one line, the field, the nearest valid name; nothing allocated, no run directory made."""

import math
import sys

import pytest

from pretrain import train
from pretrain.command_line import changed_settings, parse, write_config
from pretrain.errors import ConfigurationError
from tests.pretrain.test_guards import run as train_toy
from tests.pretrain.test_guards import toy
from tests.pretrain.toy import ToyTask

TOY = ["--task", "tests.pretrain.toy.ToyTask", "--output", "runs/never", "--steps", "3"]


def test_a_task_by_import_path_with_overrides():
    config, text = parse([*TOY, "--task.size", "12", "--optimizer.lr", "0.5", "--batch.size", "4"])
    assert type(config.task).__name__ == "ToyTask" and config.task.size == 12
    assert config.optimizer.lr == 0.5 and config.batch.size == 4
    assert "class_path: tests.pretrain.toy.ToyTask" in text and "size: 12" in text


def test_variables_are_each_hosts_own_and_stay_in_the_stored_configuration(monkeypatch):
    monkeypatch.setenv("SHARDS", "/local/here")
    config, text = parse([*TOY, "--output", "${SHARDS}/run", "--engine.deepspeed", '{"a": ["${SHARDS}"]}'])
    assert config.output == "/local/here/run" and config.engine.deepspeed == {"a": ["/local/here"]}
    assert "output: ${SHARDS}/run" in text and "/local/here" not in text
    monkeypatch.delenv("SHARDS")
    with pytest.raises(ConfigurationError, match=r"\$\{SHARDS\}/run: the variable SHARDS is not set on host"):
        parse([*TOY, "--output", "${SHARDS}/run"])


@pytest.mark.parametrize(
    ("argument", "value", "nearest"),
    [
        ("--optimizer.learning_rate", "1", "optimizer.lr"),
        ("--optimiser.lr", "1", "optimizer.lr"),
        ("--engine.zero_stge", "1", "engine.zero_stage"),
        ("--checkpoint.evry", "1", "checkpoint.every"),
    ],
)
def test_unknown_argument_names_the_nearest(argument, value, nearest):
    with pytest.raises(ConfigurationError) as error:
        parse([*TOY, argument, value])
    assert argument.removeprefix("--") in str(error.value) and nearest in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("yaml", "unknown", "nearest"),
    [
        ("optimizer: {lrr: 1}", "lrr", "lr"),
        ("stepps: 5", "stepps", "steps"),
        ("engine: {offload: {optimiser: cpu}}", "optimiser", "optimizer"),
        ("optimizer: {foo: 1}", "foo", "did you mean 'optimizer."),
        ("task: {class_path: pretrain.tasks.LanguageModelTask, init_args: {zloss: 1}}", "zloss", "z_loss"),
        ("task: {class_path: tests.pretrain.toy.ToyTask, init_args: {siz: 5}}", "siz", "size"),
        ("task: {class_path: tests.pretrain.toy.ToyTask, init_args: {qqq: 5}}", "qqq", "known are size, "),
    ],
)
def test_unknown_key_in_yaml_names_the_nearest(tmp_path, yaml, unknown, nearest):
    path = tmp_path / "run.yaml"
    path.write_text(yaml + "\n")
    with pytest.raises(ConfigurationError) as error:
        parse([*TOY, "--config", str(path)])
    assert repr(unknown)[1:-1] in str(error.value) and nearest in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--steps", "many"], "steps"),
        (["--engine.zero_stage", "4"], "zero_stage"),
        (["--optimizer.betas", "[0.9]"], "betas"),
        (["--steps", "0"], "steps is 0"),
        (["--checkpoint.every", "0"], r"checkpoint\.every is 0; it must be at least 1"),
        (["--telemetry.every", "0"], r"telemetry\.every is 0"),
        (["--validation.every", "0"], r"validation\.every is 0"),
        (["--loader.workers", "-1"], r"loader\.workers is -1"),
        (["--optimizer.lr", "-1"], r"optimizer\.lr is -1\.0; it must be greater than 0"),
        (["--optimizer.betas", "[2,3]"], r"optimizer\.betas has 3"),
        (["--optimizer.muon_lr", ".inf"], r"optimizer\.muon_lr is inf; it must be a finite number"),
        (["--optimizer.width_rule.anchor_width", "0"], r"optimizer\.width_rule\.anchor_width is 0; it must be greater"),
        (["--optimizer.batch_rule.anchor_lr", "-1"], r"optimizer\.batch_rule\.anchor_lr is -1\.0; it must be greater"),
        (["--optimizer.weight_decay", "-3"], r"optimizer\.weight_decay is -3"),
        (["--schedule.warmup_steps", "-4"], r"schedule\.warmup_steps is -4"),
        (["--schedule.final_ratio", "5"], r"schedule\.final_ratio is 5"),
        (["--engine.offload.parameters", "cpu"], "zero_stage 3"),
        (["--task.size", "x"], "size"),
        (["--task", "tests.pretrain.toy.NoSuchTask"], "NoSuchTask"),
        (["--config", "no/such/file.yaml"], "no/such/file.yaml"),
    ],
)
def test_wrong_values_name_the_field(arguments, field):
    with pytest.raises(ConfigurationError, match=field):
        parse([*TOY, *arguments])


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("optimizer: [muon]", r"optimizer is \['muon'\]; it must be a mapping of its fields: name, lr"),
        ("seed: 1\noptimizer:", r"optimizer is null; it must be OptimizerConfig, or left out"),
        ("optimizer: {muon_lr: null}", r"optimizer\.muon_lr is null; it must be float, or left out"),
        ("optimizer: {width_rule: null}", r"optimizer\.width_rule is null"),
        ("optimizer: {width_rule: {exponent: .nan}}", r"optimizer\.width_rule\.exponent is nan; it must be a finite"),
        ("engine: {deepspeed: null}", r"engine\.deepspeed is null"),
        ("distributed: {timeout_seconds: .inf}", r"distributed\.timeout_seconds is inf"),
        (
            "task: {class_path: tests.pretrain.toy.ToyTask, init_args: {size: null}}",
            r"task\.size is null; it must be int",
        ),
        (
            "task: {class_path: pretrain.tasks.LanguageModelTask, init_args: {model: x, train: [y], z_loss: null}}",
            r"task\.z_loss is null; it must be float",
        ),
        ("hooks: [{class_path: eval.hooks.LmEvalHook, init_args: {tasks: [x], every: null}}]", r"hooks\.every is null"),
    ],
)
def test_values_that_the_types_do_not_have_are_refused(tmp_path, yaml, said):
    """jsonargparse lets all of them through."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml + "\n")
    with pytest.raises(ConfigurationError, match=said):
        parse([*TOY[2:], *([] if yaml.startswith("task") else TOY[:2]), "--config", str(path)])


def test_nulls_and_odd_numbers_that_are_meant_pass():
    config, _ = parse([*TOY, "--optimizer.lr", "null", "--task.poison", "null", "--guards.spike_sigmas", "null"])
    assert config.optimizer.lr is None and math.isnan(config.task.factor)  # the task's own default


def test_a_tasks_own_optimizer_must_be_one(monkeypatch):
    monkeypatch.setattr(ToyTask, "default_optimizer", "sgd")
    with pytest.raises(ConfigurationError, match=r"default_optimizer of ToyTask is 'sgd'; it must be adamw or muon"):
        parse(TOY)
    assert parse([*TOY, "--optimizer.name", "adamw"])[0].optimizer.name == "adamw"


def test_a_tasks_own_means_must_be_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTask, "mean_metrics", ("bits",))
    with pytest.raises(ConfigurationError, match=r"ToyTask\.mean_metrics names 'bits', which is not reported of the"):
        train_toy(toy(tmp_path, steps=1))


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        ({"task__train": '["nope"]'}, 1, "train.py: nope: no such directory"),
        ({"task__attention": "foo"}, 1, "train.py: task.attention 'foo'"),
        ({"output": "pyproject.toml"}, 2, "train.py: output pyproject.toml: File exists; it must be a folder"),
    ],
)
def test_what_the_configuration_names_is_refused_without_a_traceback(
    overrides, code, message, tiny_arguments, tmp_path, monkeypatch, capsys
):
    output = overrides.get("output", tmp_path / "run")
    arguments = tiny_arguments(output, **{name: value for name, value in overrides.items() if name != "output"})
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(train, "_leave", lambda: sys.exit(1))  # it ends the process that this test runs in
    with pytest.raises(SystemExit) as ended:
        sys.exit(train.main())
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert message in said and "Traceback" not in said


def test_a_start_with_other_settings_says_which(tmp_path):
    def text(rate: str) -> str:
        return parse(
            ["--task", "tests.pretrain.toy.ToyTask", "--output", str(tmp_path), "--steps", "3", "--optimizer.lr", rate]
        )[1]

    assert changed_settings(tmp_path, text("0.01")) == ""
    write_config(tmp_path, text("0.01"))
    assert changed_settings(tmp_path, text("0.01")) == ""
    assert changed_settings(tmp_path, text("0.02")) == "optimizer.lr: 0.01 -> 0.02"


def test_missing_required_field_is_named():
    with pytest.raises(ConfigurationError, match="steps"):
        parse(TOY[:-2])
