"""The scaling grid: cells and seeds, measurements of words and of text, fits of what was put in, and the report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.__main__ import main
from eval.grid import GridError, cells, planned_steps, results, train_all
from eval.grid_measures import measure_cell, measurements_of
from eval.grid_preparation import read_prepared_grid
from eval.recognisers import Reading
from eval.scaling import Scaling, breakthrough, points_of
from eval.scaling_fits import analyse, budget_series
from pretrain.command_line import parse
from pretrain.trainer import train
from tests.data_pipeline.word_cases import write_lmdb
from tests.pretrain.conftest import TINY
from tests.pretrain.conftest import corpus as shards  # noqa: F401
from tests.pretrain.test_word_recognition import LABELS, SHAPE

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {"a": 16, "b": 24, "c": 32, "d": 48, "e": 64}
AMOUNTS = {"v1": 1000, "v2": 4000, "v3": 16000, "v4": 64000, "v5": 256000}
# Stands in for pretrain/train.py: leaves a run whose loss is a sum of two powers, with seeds 1 % apart.
STUB = """
import json, pathlib, shutil, sys
values = dict(zip((a.removeprefix("--") for a in sys.argv[2::2]), sys.argv[3::2]))
run = pathlib.Path(values["output"])
size, volume = run.parent.name.split("_")
with open({calls!r}, "a") as out:
    out.write(f"{{run}}\\n")
known = json.loads(pathlib.Path({known!r}).read_text())
n, d = known["parameters"][size], known["amounts"][volume]
seed = int(values["seed"])
final = (0.2 + 20 * n ** -0.4 + 9 * d ** -0.35) * (1 + 0.01 * (seed % 3 - 1))
if (size, volume) == ("a", "v1"):
    final = 2.6
rows = [{{"kind": "train", "step": 8, "loss": final, "seconds": 36.0}}]
for step in (2, 4, 6, 8):
    loss = final + 0.5 * (8 - step)
    rows.append({{"kind": "valid", "step": step, "loss": loss, "loss/held_out": loss, "seconds": 4.5 * step}})
run.mkdir(parents=True, exist_ok=True)
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
shutil.copytree(known["models"][size], run / "checkpoints" / "step_00000008", dirs_exist_ok=True)
"""


@pytest.fixture
def words_grid(tmp_path):
    """Five sizes of a recogniser, five volumes, two benchmarks, a held-out store; training is a stand-in."""
    (tmp_path / "shape.yaml").write_text(json.dumps(SHAPE))
    (tmp_path / "list.txt").write_text("sun moon star rain")
    (tmp_path / "tests").mkdir()
    write_lmdb(tmp_path / "tests" / "one", LABELS)
    write_lmdb(tmp_path / "tests" / "two", LABELS[:5])
    write_lmdb(tmp_path / "held_out", LABELS[2:6])
    task = {
        "model": str(tmp_path / "shape.yaml"),
        "charset": "36",
        "synthetic": {"words": [str(tmp_path / "list.txt")], "size": 8, "longest": 8},
        "valid": {"held_out": str(tmp_path / "held_out")},
    }
    content = {
        "task": {"class_path": "pretrain.tasks.WordRecognitionTask", "init_args": task},
        "output": "unused", "steps": 8, "batch": {"size": 8, "micro_size": 8},
        "telemetry": {"tensorboard": False, "progress_bar": False}, "checkpoint": {"every": 8},
        "validation": {"every": 2},
    }  # fmt: skip
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    known = {"parameters": {}, "amounts": AMOUNTS, "models": {}}
    for size, width in WIDTHS.items():
        (tmp_path / size).mkdir()
        overrides = ["--task.model_overrides", json.dumps({"width": width})]
        config, _ = parse(["--config", str(tmp_path / "train.yaml"), *overrides])
        model = config.task.build_model(0)
        config.task.save_pretrained(model, model.state_dict(), tmp_path / size)
        known["models"][size] = str(tmp_path / size)
        known["parameters"][size] = sum(p.numel() for p in model.parameters())
    (tmp_path / "known.json").write_text(json.dumps(known))
    stub = STUB.format(calls=str(tmp_path / "calls"), known=str(tmp_path / "known.json"))
    (tmp_path / "stub.py").write_text(stub)
    grid = {
        "title": "A scaling grid",
        "config": str(tmp_path / "train.yaml"),
        "output": str(tmp_path / "cells"),
        "report": str(tmp_path / "docs" / "scaling.md"),
        "launcher": [sys.executable, str(tmp_path / "stub.py")],
        "definitions": {"benchmarks": str(tmp_path / "tests")},
        "seeds": [1],
        "margins": {"seeds": [2, 3], "sizes": ["e"], "volumes": ["v5"]},
        "plateau": 2.0,
        "resamples": 60,
        "benchmarks": ["{benchmarks}"],
        "held_out": str(tmp_path / "held_out"),
        "sizes": {size: {"task.model_overrides": {"width": width}} for size, width in WIDTHS.items()},
        "volumes": {name: {"amount": n, "task.synthetic.size": n} for name, n in AMOUNTS.items()},
    }
    path = tmp_path / "scaling.yaml"
    path.write_text(yaml.safe_dump(grid))
    return path


@pytest.fixture
def reader(monkeypatch):
    """A recogniser that reads as many words rightly as a law over its size and volume says."""

    class Reader:
        def __init__(self, directory, device, mode, refinements):
            size, volume = directory.parents[2].name.split("_")
            self.share = 3 * (WIDTHS[size] / 16) ** -0.8 * (AMOUNTS[volume] / 1000) ** -0.25
            self.rng = np.random.default_rng([WIDTHS[size], AMOUNTS[volume], len(directory.parents[1].name)])
            self.answers = iter([*LABELS, *LABELS[:5], *LABELS[2:6]])

        def read(self, images):
            return [Reading("" if self.rng.random() < self.share else next_, 1.0)
                    for next_, _ in zip(self.answers, images, strict=False)]  # fmt: skip

    monkeypatch.setattr("eval.recognisers.ParseqRecogniser", Reader)


def calls(path):
    return path.with_name("calls").read_text().splitlines()


def test_the_whole_grid_and_then_nothing_twice(words_grid, reader, capsys):
    command = ["scaling", "--config", str(words_grid)]
    assert main(command) == 0
    assert len(calls(words_grid)) == 25 + 2 * 9
    report = (words_grid.parent / "docs" / "scaling.md").read_text()
    assert "43 of 43 runs" in report and "0.43 hours" in report and "Runs saw 64 images each." in report
    assert "`a_v1` (censored: 1 of 1 runs stayed on the plateau)" in report and "never" in report
    assert "## Validation loss" in report and "## Word error on the benchmarks" in report
    assert "## Word error on the held-out store" in report and "biased upward" in report
    folder = words_grid.parent / "docs" / "scaling"
    assert {p.name for p in folder.iterdir()} == {"loss.png", "error.png", "held_out_error.png", "budgets.png"}
    content = json.loads((words_grid.parent / "docs" / "scaling.json").read_text())
    assert content["cells"][0]["censored"] and content["cells"][0]["breakthrough"] == [None]
    assert content["cells"][-1]["seeds"] == [1, 2, 3] and content["cells"][-1]["breakthrough"] == [6, 6, 6]
    measured = json.loads(next((words_grid.parent / "cells").glob("c_v3/seed1/cell.json")).read_text())
    assert set(measured["benchmarks"]) == {"one", "two"} and len(measured["benchmarks"]["one"]["wrong"]) == 8
    assert measured["benchmarks"]["two"]["accuracy"] == measured["benchmarks"]["two"]["wrong"].count("0") / 5
    assert measured["samples"] == 64 and measured["unit"] == "images" and len(measured["curve"]) == 4
    before = {p: p.stat().st_mtime_ns for p in (words_grid.parent / "cells").rglob("cell.json")}
    assert main([*command, "--stage", "report"]) == 0 and main(command) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (words_grid.parent / "cells").rglob("cell.json")}
    assert len(calls(words_grid)) == 43


def test_fits_find_the_law_that_was_put_in(words_grid, reader):
    grid = read_prepared_grid(words_grid, {}, Scaling)
    train_all(grid)
    for cell in cells(grid):
        cell.result.write_text(json.dumps(measure_cell(cell, grid)))
    points = points_of(grid, results(grid))
    loss = analyse(grid, points)[0]
    assert list(loss.excluded) == ["a_v1"]
    row, column, joint = (loss.series[axis] for axis in ("parameters", "data", "joint"))
    assert row.names == ["a_v5", "b_v5", "c_v5", "d_v5", "e_v5"] and column.names[0] == "e_v1" and len(joint.y) == 24
    assert joint.fits["joint"].constants()["alpha"].value == pytest.approx(0.4, abs=0.03)
    assert joint.fits["joint"].constants()["beta"].value == pytest.approx(0.35, abs=0.03)
    assert joint.fits["joint"].constants()["alpha"].covers(0.4)
    held = {entry.law: entry for entry in row.predictions["the largest"]}
    assert list(held) == ["power", "offset", "constant", "linear"]
    assert all(entry.point == "e_v5" for entry in held.values())
    assert abs(held["offset"].relative_error) < 0.02 and held["offset"].covered
    assert abs(held["constant"].relative_error) > 0.1 and not held["constant"].covered
    models = joint.predictions["the largest model"]
    assert [entry.point for entry in models] == [f"e_v{n}" for n in range(1, 6)]
    assert max(abs(entry.relative_error) for entry in models) < 0.03
    budgets, fits = budget_series(grid, points)
    assert len(budgets) == 10 and budgets[-1].point == "e_v5" and fits is not None
    assert budgets[-1].value == pytest.approx(loss.quantity.values["e_v5"].mean())


def test_a_half_done_grid_says_what_it_has(words_grid, reader, capsys):
    grid = read_prepared_grid(words_grid, {}, Scaling)
    assert main(["scaling", "--config", str(words_grid), "--stage", "report"]) == 1
    assert "no measured cell yet" in capsys.readouterr().err
    assert main(["scaling", "--config", str(words_grid), "--stage", "train"]) == 0
    for cell in cells(grid)[:2]:  # a_v1 is censored, so that one cell is left
        cell.result.write_text(json.dumps(measure_cell(cell, grid)))
    assert main(["scaling", "--config", str(words_grid), "--stage", "report"]) == 0
    assert "Too few cells are left" in (words_grid.parent / "docs" / "scaling.md").read_text()


def test_breakthrough_is_the_first_step_below():
    curve = [[2, {"loss": 3.0}], [4, {"loss": 1.9}], [6, {"loss": 2.1}]]
    assert breakthrough(curve, "loss", 2.0) == 4
    assert breakthrough(curve, "loss", 1.0) is None
    assert breakthrough(curve, "loss", None) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {"x": {}}}, "variants: a scaling grid makes its own"),
        ({"sizes": {"a": {}, "b": {}}}, "sizes: a scaling grid needs at least 3, got 2"),
        ({"volumes": {"v1": {"amount": 0}, "v2": {}, "v3": {}}}, "volumes.v1: amount must be a number of samples"),
        ({"margins": {"size": ["a"]}}, "margins: unknown field 'size'"),
        ({"margins": {"sizes": ["z"]}}, "margins.sizes: 'z' is not among the sizes"),
        ({"resamples": 0}, "resamples: must be at least 1"),
    ],
)
def test_errors_name_the_field(words_grid, change, message):
    words_grid.write_text(yaml.safe_dump(yaml.safe_load(words_grid.read_text()) | change))
    with pytest.raises(GridError, match=message):
        read_prepared_grid(words_grid, {}, Scaling)


def test_a_field_set_twice_is_refused(words_grid):
    content = yaml.safe_load(words_grid.read_text())
    content["sizes"]["a"]["task.synthetic.size"] = 3
    words_grid.write_text(yaml.safe_dump(content))
    with pytest.raises(GridError, match=r"sizes.a and volumes.v1 both set task.synthetic.size"):
        read_prepared_grid(words_grid, {}, Scaling)


def test_a_real_cell_of_words(words_grid):
    grid = read_prepared_grid(words_grid, {}, Scaling)
    cell = cells(grid)[0]
    train(parse(cell.arguments)[0])
    measured = measure_cell(cell, grid)
    assert measured["parameters"] == json.loads(words_grid.with_name("known.json").read_text())["parameters"]["a"]
    assert [step for step, _ in measured["curve"]] == [2, 4, 6, 8]
    assert measured["curve"][-1][1]["loss"] == measured["valid"]["loss/held_out"]
    assert measured["flops"] > 0 and measured["benchmarks"]["one"]["images"] == 8
    assert len(measured["held_out"]["held_out"]["wrong"]) == 4


def test_a_real_cell_of_text(shards, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load((ROOT / "configs/pangu_pi/scaling_tiny.yaml").read_text())
    (tmp_path / "shape.yaml").write_text(json.dumps(TINY))
    content["output"] = str(tmp_path / "cells")
    content["overrides"] |= {
        "task.model": str(tmp_path / "shape.yaml"),
        "task.train": [str(shards["train"])],
        "task.valid": {"all": str(shards["valid"])},
        "task.sequence_length": 32,
        "batch.size": 8,
        "batch.micro_size": 8,
        "validation.every": 2,
    }
    content["sizes"] = {
        name: {"task.model_overrides": {"intermediate_size": 16 * n}} for n, name in enumerate("abc", 1)
    }
    content["volumes"] = {f"v{n}": {"amount": 16 * n, "steps": 2 * n} for n in (1, 2, 3)}
    content["margins"] = {}
    (tmp_path / "scaling.yaml").write_text(yaml.safe_dump(content))
    grid = read_prepared_grid(tmp_path / "scaling.yaml", {}, Scaling)
    cell = next(cell for cell in cells(grid) if cell.variant == "b_v2")
    config = parse(cell.arguments)[0]
    assert planned_steps(cell) == 4 and measurements_of(config.task) == []
    train(config)
    measured = measure_cell(cell, grid)
    assert (measured["samples"], measured["unit"], measured["units_per_sample"]) == (32, "tokens", 32)
    assert "benchmarks" not in measured and measured["valid"]["bits_per_byte/all"] > 0
    (point,) = points_of(grid, {"b_v2": {1: measured}})
    assert point.data == 32 * 32 and point.flops == pytest.approx(32 * config.task.flops_per_sample())


def test_the_shipped_grids_are_readable(monkeypatch):
    monkeypatch.chdir(ROOT)
    given = {"words": "WORDS", "benchmarks": "DIR"}
    grid = read_prepared_grid(ROOT / "configs/ocr/scaling_cpu.yaml", given, Scaling)
    assert len(grid.sizes) >= 5 and len(grid.volumes) >= 5
    made = cells(grid)
    assert len(made) == 25 + 2 * 9 and len({cell.directory for cell in made}) == len(made)
    seen = {planned_steps(cell) for cell in made}
    assert len(seen) == 1  # the same number of images in every cell
    for volume in grid.volumes.values():
        assert volume["amount"] == volume["task.synthetic.size"]
    for cell in made[:5]:
        config = parse(cell.arguments)[0]
        assert config.task.valid["drawn"].endswith("held_out") and config.task.synthetic.words == ["WORDS"]
    text = read_prepared_grid(ROOT / "configs/pangu_pi/scaling_tiny.yaml", {}, Scaling)
    for cell in cells(text):
        config = parse(cell.arguments)[0]
        volume = text.volumes[cell.variant.split("_")[1]]
        assert config.batch.size * planned_steps(cell) == volume["amount"]
