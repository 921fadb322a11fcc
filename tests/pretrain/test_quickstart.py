"""The walk-throughs' own command line and their lists of commands, without running them; `make` shows they work."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.grid.preparation import read_defined
from eval.prompting.sets import parse_sets
from pretrain import __main__ as front_door
from pretrain import accelerator_presence
from pretrain.command_line import parse
from pretrain.quickstarts import commands_once as pipeline
from pretrain.quickstarts.commands_once import Pipeline, StepFailed, shorten
from pretrain.quickstarts.images import SETS, TASKS
from tests.pretrain.conftest import ROOT

OPTIONS = {name: front_door.COMMANDS[name].options_class()() for name in ("quickstart", "ocr", "vision")}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
    return front_door.main()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have run; each leaves the files that the next ones look for."""
    commands: list[list[str]] = []

    def pretend(command: Sequence[str], _: object) -> int:
        commands.append(shorten(tuple(command)))
        output = Path(command[command.index("--output") + 1])
        if "sample" in command:
            output.mkdir(parents=True)
            for name in ("train.en", "valid.en"):
                (output / f"{name}.jsonl").write_text("")
        if "visual" in command:
            output.mkdir()
            (output / "visual_tokenizer.json").write_text('{"vocab_size": 500}')
        return 0

    monkeypatch.setattr(pipeline, "run_to_end", pretend)
    monkeypatch.setattr(pipeline, "on_free_port", list)
    return commands


def after(command: list[str], name: str) -> str:
    """The value of an option."""
    return command[command.index(name) + 1]


def test_sources_follow_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    pretend = lambda config: seen.append(config) or tmp_path / "report.html"  # noqa: E731
    monkeypatch.setattr("pretrain.quickstarts.text.quickstart", pretend)
    assert call(monkeypatch, "quickstart", "--source", "a/", "b.jsonl", "--output", str(tmp_path)) == 0
    assert seen[0].source == ["a/", "b.jsonl"] and seen[0].output == str(tmp_path)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "ranks: must be at least 1"),
        (["--steps", "0"], "steps: must be at least 1"),
        (["--config", "nope.yaml"], "there is no file nope.yaml"),
    ],
)
def test_wrong_arguments_end_it_before_the_first_step(name, arguments, message, launched, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, name, *arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err and not launched


def test_own_counts_are_checked_too(launched, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "ocr", "--images", "0")
    assert "images: must be at least 1" in capsys.readouterr().err and not launched


def test_the_recogniser_is_measured_on_words_it_has_not_seen(launched, monkeypatch, tmp_path, capsys) -> None:
    assert call(monkeypatch, "ocr", "--output", str(tmp_path), "--steps", "5") == 0
    rooms = [" ".join(command[2:4]) if command[0] == "python" else Path(command[0]).name for command in launched]
    assert rooms == [
        "data_pipeline sample",
        "data_pipeline sample-words",
        "data_pipeline synth-words",
        "data_pipeline synth-words",
        "deepspeed",
        "eval ocr",
        "eval report",
    ]
    drawn = {Path(after(command, "--output")).name: command for command in launched[2:4]}
    for option in ("--words", "--seed"):
        assert after(drawn["train"], option) != after(drawn["valid"], option), option
    assert after(launched[5], "--data") == after(drawn["valid"], "--output")
    assert after(launched[4], "--steps") == "5"
    assert f"--model ours={tmp_path}/train rapidocr" in capsys.readouterr().out


def test_own_words_take_the_place_of_the_corpus(launched, monkeypatch, tmp_path) -> None:
    assert call(monkeypatch, "ocr", "--output", str(tmp_path), "--words", "a.txt", "b.txt") == 0
    assert launched[0][2:7] == ["data_pipeline", "sample-words", "--words", "a.txt", "b.txt"]


def test_held_out_photographs_are_neither_in_the_tokenizer_nor_in_training(launched, monkeypatch, tmp_path) -> None:
    assert call(monkeypatch, "vision", "--output", str(tmp_path), "--images", "a/", "b.jpg") == 0
    assert launched[0][2:7] == ["data_pipeline", "sample-images", "--images", "a/", "b.jpg"]
    held_out = str(tmp_path / "photographs" / "valid")
    reading = [after(command, "--output") for command in launched if held_out in command]
    assert {Path(folder).name for folder in reading} == {f"valid.{task}" for task in TASKS}
    train = next(command for command in launched if "deepspeed" in command[0])
    assert not any(folder in after(train, "--task.train") for folder in reading)
    assert after(train, "--task.model_overrides") == '{"vocab_size": 500}'
    for split in ("train", "valid"):
        (tmp_path / "photographs" / split).mkdir(parents=True)
    sets = parse_sets(read_defined(ROOT / SETS, {"photographs": str(tmp_path / "photographs")}), SETS)
    assert {each.task for each in sets} == set(TASKS)
    noise = next(each.held_out.pairs.corruption.noise for each in sets if each.task == "denoising")
    assert json.loads(TASKS["denoising"][1]) == list(noise)
    for each in sets:
        assert each.held_out.input == [held_out] and each.examples.input == [str(tmp_path / "photographs" / "train")]


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "quickstart"])
def test_what_is_done_is_skipped_and_what_has_changed_is_not(name, launched, monkeypatch, tmp_path, capsys) -> None:
    for _ in range(2):
        assert call(monkeypatch, name, "--output", str(tmp_path)) == 0
    assert len(launched) == capsys.readouterr().out.count("done before, skipped")
    del launched[:]
    assert call(monkeypatch, name, "--output", str(tmp_path), "--steps", "7") == 0
    assert "deepspeed" in Path(launched[0][0]).name and len(launched) == 3  # training, its measurement, the report


@pytest.mark.parametrize("name", OPTIONS)
def test_the_configuration_is_valid(name, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    config, _ = parse(["--config", OPTIONS[name].config])
    assert config.batch.size % (OPTIONS[name].ranks * config.batch.micro_size) == 0


def test_a_finished_step_is_skipped_and_a_failed_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    write = (
        f"import pathlib; p = pathlib.Path({str(made)!r}); p.write_text((p.read_text() if p.exists() else '') + 'x')"
    )
    for _ in range(2):
        Pipeline(tmp_path).run("step", "a step", made, sys.executable, "-c", write)
    assert made.read_text() == "x" and "done before, skipped" in capsys.readouterr().out
    with pytest.raises(StepFailed, match=r"'a step' failed \(exit code 3\)"):
        Pipeline(tmp_path).run("step", "a step", made, sys.executable, "-c", "raise SystemExit(3)")
    Pipeline(tmp_path).run("step", "a step", made, sys.executable, "-c", write)
    assert made.read_text() == "x"


@pytest.mark.parametrize(("available", "told"), [(True, None), (False, "cpu")])
def test_deepspeed_looks_for_an_accelerator_only_where_there_is_one(available, told, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(accelerator_presence, "accelerator_available", lambda: available)
    assert pipeline.environment().get("DS_ACCELERATOR") == told
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    assert pipeline.environment()["DS_ACCELERATOR"] == "xpu"  # the user's word stays
