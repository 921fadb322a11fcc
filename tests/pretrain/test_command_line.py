"""Configuration errors: one line, the field, the nearest valid name; nothing allocated, no run directory made."""

import sys

import pytest

from pretrain import train
from pretrain.command_line import parse
from pretrain.errors import ConfigurationError

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
        ("task: {class_path: tests.pretrain.toy.ToyTask, init_args: {siz: 5}}", "siz", "size"),
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


def test_missing_required_field_is_named():
    with pytest.raises(ConfigurationError, match="steps"):
        parse(TOY[:-2])
