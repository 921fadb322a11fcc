"""The examples of docs/add_a_task.md and docs/add_a_measurement.md; test_every_task.py holds the task to the trainer's
promises."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from eval.__main__ import main as evaluate
from eval.grid.grid import GridError
from eval.grid.measures import measure_cell, measure_more
from eval.report.run_record import read_run
from eval.report.suggestions import suggestions
from examples.digits import DigitsTask
from pretrain.command_line import parse, write_config
from pretrain.errors import ConfigurationError
from pretrain.tasks.facts import NAME
from pretrain.trainer import train
from tests.pretrain.conftest import rows

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--telemetry.tensorboard", "false", "--telemetry.progress_bar", "false"]


def test_the_example_reads_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    train(parse(["--config", "examples/digits.yaml", "--output", str(tmp_path), *QUIET])[0])
    last = [row["accuracy"] for row in rows(tmp_path, "train")[-5:]]
    assert sum(last) / len(last) > 0.97 and rows(tmp_path, "valid")[-1]["loss"] < 0.2
    assert len((ROOT / "examples/digits.py").read_text().splitlines()) < 100


class Undeclared(DigitsTask):
    """Says nothing of itself."""

    measurement = "undeclared"
    suggestions = None


class Missing(DigitsTask):
    """Names a function that is not there."""

    measurement = "examples.digits_measurement:nothing"


class Nowhere(DigitsTask):
    """Names a module that is not there."""

    measurement = "examples.nothing:confusions"


def short_run(output: Path, task: str) -> list[str]:
    words = ["--config", "examples/digits.yaml", "--task", task, "--output", str(output), "--steps", "2", *QUIET]
    return [*words, "--checkpoint.every", "2", "--validation.every", "2"]


def test_a_grid_measures_what_a_task_of_ones_own_declares(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)  # of a run in this process
    grid = yaml.safe_load((ROOT / "examples/digits_grid.yaml").read_text())
    grid |= {"output": str(tmp_path / "cells"), "report": str(tmp_path / "report.md"), "seeds": [1]}
    grid["overrides"] = {"steps": 20, "telemetry.tensorboard": False, "telemetry.progress_bar": False}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    assert evaluate(["compare", "--config", str(tmp_path / "grid.yaml")]) == 0
    cell = yaml.safe_load((tmp_path / "cells" / "wide" / "seed1" / "cell.json").read_text())
    assert {f"wrong/{digit}" for digit in range(10)} <= set(cell) and 0 < cell["wrong/8"] <= 1
    record = read_run(tmp_path / "cells" / "wide" / "seed1")
    assert record.facts.kind == "classifier"
    (offered,) = [each for each in suggestions(record) if each.reason == "Try a wider layer."]
    assert offered.command.endswith("seed1-wide") and "--config" in offered.command


class Twice(DigitsTask):
    """Measures what every cell has."""

    measurement = "tests.pretrain.test_examples:parameters_again"


def parameters_again(_checkpoint: Path, _grid: object) -> dict[str, int]:
    return {"parameters": 1}


def test_a_measurement_replaces_no_number_of_the_cell(monkeypatch):
    class Nothing:
        directory = ROOT
        arguments = ()

    facts = {"valid": {}, "seconds": 1.0}
    monkeypatch.setattr(
        "pretrain.command_line.parse", lambda _: (parse(short_run(ROOT, "tests.pretrain.test_examples.Twice"))[0], "")
    )
    monkeypatch.setattr("eval.grid.measures.training_facts", lambda _: facts)
    monkeypatch.setattr("eval.grid.measures.planned_steps", lambda _: 2)
    monkeypatch.setattr("eval.report.run_record.read_run", lambda _: SimpleNamespace(rows={"valid": []}))
    monkeypatch.setattr(Twice, "load_model", lambda self, _: self.build_model(0))
    with pytest.raises(GridError, match="returned 'parameters', which every cell has already"):
        measure_cell(Nothing(), None)


def test_what_a_task_does_not_declare_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config, text = parse(short_run(tmp_path, "tests.pretrain.test_examples.Undeclared"))
    write_config(tmp_path, text)
    train(config)
    record = read_run(tmp_path)
    assert any("test_examples.Undeclared declares none" in line for line in record.missing)
    assert measure_more(Undeclared(), tmp_path, None) == {}
    assert "Undeclared declares no measurement" in capsys.readouterr().out
    (tmp_path / NAME).write_text("{}")
    assert any(f"{NAME} cannot be read" in line for line in read_run(tmp_path).missing)


def test_what_is_declared_and_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        GridError, match=r"measurement of Missing is .*, but examples.digits_measurement has no nothing"
    ):
        measure_more(Missing(), tmp_path, None)
    with pytest.raises(
        ConfigurationError, match=r"measurement of Nowhere is .*, but there is no module examples.nothing"
    ):
        parse(short_run(tmp_path, "tests.pretrain.test_examples.Nowhere"))
