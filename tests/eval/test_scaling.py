"""The scaling grid: cells and seeds, measurements of words and of text, fits of what was put in, and the report."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.__main__ import main
from eval.grid.grid import GridError, cells, planned_steps
from eval.grid.measures import measure_cell, measurements_of
from eval.grid.preparation import read_prepared_grid
from eval.studies.scaling import Scaling, breakthrough, points_of
from eval.studies.scaling_fits import analyse, budget_series
from pretrain.command_line import parse
from pretrain.tasks.word_recognition import WordRecognitionTask, load_recogniser
from pretrain.trainer import train
from tests.data_pipeline.word_cases import write_lmdb
from tests.pretrain.conftest import TINY
from tests.pretrain.conftest import corpus as shards  # noqa: F401
from tests.pretrain.test_word_recognition import LABELS, SHAPE

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {"a": 16, "b": 32, "c": 64}
AMOUNTS = {"v1": 16, "v2": 32, "v3": 1000}
# Stands in for pretrain/train.py: leaves a run whose loss is a sum of two powers, with seeds 1 % apart.
STUB = """
import json, pathlib, shutil, sys
values = dict(zip((a.removeprefix("--") for a in sys.argv[2::2]), sys.argv[3::2]))
run = pathlib.Path(values["output"])
size, volume = run.parent.name.split("_")
with open({calls!r}, "a") as out:
    out.write(f"{{run}}\\n")
known = json.loads(pathlib.Path({known!r}).read_text())
final = 2.6 if (size, volume) == ("a", "v1") else 0.5 + 20 * known["parameters"][size] ** -0.4
rows = [{{"kind": "train", "step": 8, "loss": final, "seconds": 36.0}}]
for step in (2, 4, 6, 8):
    loss = final + 0.5 * (8 - step)
    rows.append({{"kind": "valid", "step": step, "loss": loss, "loss/held_out": loss, "seconds": 4.5 * step}})
run.mkdir(parents=True, exist_ok=True)
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
shutil.copytree(known["models"][size], run / "checkpoints" / "step_00000008", dirs_exist_ok=True)
"""
SIZES = {"xxs": 54_117, "xs": 140_149, "s": 290_085, "m": 743_557, "l": 1_500_965}
VOLUMES = {"2k": 2_000, "8k": 8_000, "32k": 32_000, "128k": 128_000, "512k": 512_000}


@pytest.fixture
def words_grid(tmp_path):
    """Three sizes of a recogniser, three volumes, two benchmarks, a held-out store; training is a stand-in."""
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
    grid = {
        "title": "A scaling grid",
        "config": str(tmp_path / "train.yaml"),
        "output": str(tmp_path / "cells"),
        "report": str(tmp_path / "docs" / "scaling.md"),
        "launcher": [sys.executable, str(tmp_path / "stub.py")],
        "definitions": {"benchmarks": str(tmp_path / "tests")},
        "seeds": [1],
        "margins": {"seeds": [2], "sizes": ["c"], "volumes": ["v3"]},
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
def stub(words_grid):
    """The stand-in, with an untrained checkpoint of each size; gives the parameters by size."""
    folder = words_grid.parent
    known = {"parameters": {}, "models": {}}
    for size, width in WIDTHS.items():
        task = WordRecognitionTask(
            str(folder / "shape.yaml"), [str(folder / "held_out")], charset="36", model_overrides={"width": width}
        )
        model = task.build_model(0)
        (folder / size).mkdir()
        task.save_pretrained(model, model.state_dict(), folder / size)
        known["models"][size] = str(folder / size)
        known["parameters"][size] = sum(parameter.numel() for parameter in model.parameters())
    (folder / "known.json").write_text(json.dumps(known))
    (folder / "stub.py").write_text(STUB.format(calls=str(folder / "calls"), known=str(folder / "known.json")))
    return known["parameters"]


@pytest.fixture
def grid(tmp_path):
    """Five sizes and five volumes that nobody trains."""
    (tmp_path / "train.yaml").write_text("steps: 8\n")
    content = {
        "title": "A law", "config": str(tmp_path / "train.yaml"), "output": str(tmp_path / "cells"),
        "report": str(tmp_path / "docs/law.md"), "seeds": [1], "plateau": 3.0, "resamples": 100,
        "margins": {"seeds": [2, 3], "sizes": ["l"], "volumes": ["512k"]}, "sizes": {name: {} for name in SIZES},
        "volumes": {name: {"amount": amount} for name, amount in VOLUMES.items()},
    }  # fmt: skip
    (tmp_path / "law.yaml").write_text(yaml.safe_dump(content))
    return read_prepared_grid(tmp_path / "law.yaml", {}, Scaling)


def made_up(grid):
    """What a grid would measure whose losses and errors are sums of two powers, seeds 1 % apart; one run is broken."""
    rng = np.random.default_rng(0)
    measured = {}
    for cell in cells(grid):
        size, volume = cell.variant.split("_")
        n, d = SIZES[size], VOLUMES[volume]
        final = (0.2 + 20 * n**-0.4 + 9 * d**-0.35) * (1 + 0.01 * (cell.seed % 3 - 1))
        final = 4.0 if cell.variant == "xxs_2k" else final
        chance = min(0.97, 0.05 + 14 * n**-0.3 * (d / 2000) ** -0.1)
        wrong = "".join("01"[int(draw < chance)] for draw in rng.random(400))
        curve = [[step, {"loss": final + 0.3 * (8 - step)}] for step in (2, 4, 6, 8)]
        measured.setdefault(cell.variant, {})[cell.seed] = {
            "valid": {"loss": final}, "seconds": 36.0, "parameters": n, "steps": 8, "samples": 600_000,
            "unit": "images", "units_per_sample": 1, "flops": 600.0 * n, "curve": curve,
            "benchmarks": {"one": {"wrong": wrong}},
        }  # fmt: skip
        cell.directory.mkdir(parents=True)
        cell.result.write_text(json.dumps(measured[cell.variant][cell.seed]))
    return measured


def calls(path):
    return path.with_name("calls").read_text().splitlines()


def test_the_whole_grid_and_then_nothing_twice(words_grid, stub):
    command = ["scaling", "--config", str(words_grid)]
    assert main(command) == 0
    assert len(calls(words_grid)) == 9 + 5
    report = (words_grid.parent / "docs" / "scaling.md").read_text()
    assert "14 of 14 cells, 0.14 hours" in report and "Runs saw 64 images each." in report
    assert "`v2`: 32 images | `v3`: 64 images" in report  # a run cannot see more than it draws
    assert "`a_v1` (censored: 1 of 1 runs stayed on the plateau)" in report and "never" in report
    measured = json.loads((words_grid.parent / "cells/b_v2/seed1/cell.json").read_text())
    assert measured["parameters"] == stub["b"] and measured["samples"] == 64 and measured["unit"] == "images"
    assert {name: len(result["wrong"]) for name, result in measured["benchmarks"].items()} == {"one": 8, "two": 5}
    assert measured["benchmarks"]["two"]["accuracy"] == measured["benchmarks"]["two"]["wrong"].count("0") / 5
    before = {p: p.stat().st_mtime_ns for p in (words_grid.parent / "cells").rglob("cell.json")}
    assert len(before) == 14 and main(command) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (words_grid.parent / "cells").rglob("cell.json")}
    assert len(calls(words_grid)) == 14


def test_fits_find_the_law_that_was_put_in(grid):
    points = points_of(grid, made_up(grid))
    loss, error = analyse(grid, points)
    assert list(loss.excluded) == ["xxs_2k"] and loss.excluded["xxs_2k"].startswith("censored: 1 of 1 runs")
    row, column, joint = (loss.series[axis] for axis in ("parameters", "data", "joint"))
    assert row.names == [f"{size}_512k" for size in SIZES]
    assert column.names == [f"l_{volume}" for volume in VOLUMES] and len(joint.y) == 24
    constants = joint.fits["joint"].constants()
    assert constants["alpha"].value == pytest.approx(0.4, abs=0.03) and constants["alpha"].covers(0.4)
    assert constants["beta"].value == pytest.approx(0.35, abs=0.03) and constants["beta"].covers(0.35)
    held = {entry.law: entry for entry in row.predictions["the largest"]}
    assert list(held) == ["power", "offset", "constant", "linear"]
    assert {entry.point for entry in held.values()} == {"l_512k"}
    assert abs(held["offset"].relative_error) < 0.02 and held["offset"].covered
    assert held["constant"].relative_error > 0.1 and not held["constant"].covered
    models = joint.predictions["the largest model"]
    assert [entry.point for entry in models] == [f"l_{volume}" for volume in VOLUMES]
    assert max(abs(entry.relative_error) for entry in models) < 0.03
    assert error.quantity.wrong["l_512k"].shape == (3, 400)
    assert error.series["parameters"].fits["power"].constants()["alpha"].low > 0


def test_errors_above_95_per_cent_are_not_fitted(grid):
    measured = made_up(grid)
    measured["xs_2k"][1]["benchmarks"]["one"]["wrong"] = "1" * 390 + "0" * 10
    _, error = analyse(grid, points_of(grid, measured))
    assert error.excluded["xs_2k"] == "error above 95%"
    assert not any("xs_2k" in series.names for series in error.series.values())
    measured["xs_2k"][1]["benchmarks"]["one"]["wrong"] = "1"
    with pytest.raises(GridError, match="not measured on the same benchmarks images"):
        analyse(grid, points_of(grid, measured))


def test_budgets_take_the_best_curve(grid):
    points = points_of(grid, made_up(grid))
    budgets, fits = budget_series(grid, points)
    assert len(budgets) == 10 and budgets[-1].point == "l_512k" and fits is not None
    assert budgets[-1].value == pytest.approx(np.mean([run["valid"]["loss"] for run in points[-1].runs.values()]))
    assert budgets[0].flops == pytest.approx(600 * SIZES["xxs"] * 2 / 8) and budgets[0].hours == pytest.approx(0.0025)
    assert all(earlier.value >= later.value for earlier, later in pairwise(budgets))


def test_the_report_of_made_up_cells(grid, tmp_path, capsys):
    command = ["scaling", "--config", str(tmp_path / "law.yaml"), "--stage", "report"]
    assert main(command) == 1
    assert "no measured cell yet" in capsys.readouterr().err
    made_up(grid)
    assert main(command) == 0
    report = (tmp_path / "docs/law.md").read_text()
    assert "43 of 43 cells" in report and "biased upward" in report and "mean absolute relative error" in report
    assert "## Validation loss" in report and "## Word error on the benchmarks" in report
    assert {p.name for p in (tmp_path / "docs/law").iterdir()} == {"loss.png", "error.png", "budgets.png"}
    content = json.loads((tmp_path / "docs/law.json").read_text())
    assert content["cells"][0]["censored"] and content["cells"][0]["breakthrough"] == [None]
    assert content["cells"][-1]["seeds"] == [1, 2, 3] and len(content["cells"][-1]["error"]) == 3
    held = content["quantities"]["loss"]["against"]["data"]["held_out"]["the largest"]["predictions"]
    assert {entry["law"] for entry in held} == {"power", "offset", "constant", "linear"}
    for cell in cells(grid):  # what is left is censored, but for one
        if cell.variant not in ("xxs_2k", "xxs_8k"):
            cell.result.unlink()
    assert main(command) == 0
    report = (tmp_path / "docs/law.md").read_text()
    assert "Too few cells are left" in report and "No cell has several seeds" in report


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
        ({"interior": False, "margins": {"seeds": [2]}}, "interior: false leaves the cells of the margins"),
        ({"resamples": 0}, "resamples: must be at least 1"),
    ],
)
def test_errors_name_the_field(words_grid, change, message):
    words_grid.write_text(yaml.safe_dump(yaml.safe_load(words_grid.read_text()) | change))
    with pytest.raises(GridError, match=message):
        read_prepared_grid(words_grid, {}, Scaling)


def test_a_cross_is_the_margins_and_nothing_else(words_grid):
    content = yaml.safe_load(words_grid.read_text()) | {"interior": False}
    words_grid.write_text(yaml.safe_dump(content))
    made = cells(read_prepared_grid(words_grid, {}, Scaling))
    assert {cell.variant for cell in made} == {"a_v3", "b_v3", "c_v3", "c_v1", "c_v2"}
    assert len(made) == 2 * 5  # each with the seed of the grid and that of the margins


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
    model, _ = load_recogniser(cell.directory / "checkpoints/step_00000008")
    assert measured["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert [step for step, _ in measured["curve"]] == [2, 4, 6, 8]
    assert measured["curve"][-1][1]["loss"] == measured["valid"]["loss/held_out"]
    assert measured["flops"] > 0 and measured["benchmarks"]["one"]["images"] == 8
    assert len(measured["held_out"]["held_out"]["wrong"]) == 4


def test_a_real_cell_of_text(shards, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load((ROOT / "configs/pangu_pi/studies/scaling_tiny.yaml").read_text())
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


@pytest.mark.parametrize(("name", "count"), [("scaling_cpu", 25 + 5), ("scaling_long_cpu", 9)])
def test_the_shipped_grids_of_words_are_readable(monkeypatch, name, count):
    monkeypatch.chdir(ROOT)
    given = {"words": "WORDS", "benchmarks": "DIR"}
    grid = read_prepared_grid(ROOT / f"configs/ocr/studies/{name}.yaml", given, Scaling)
    assert len(grid.sizes) >= 5 and len(grid.volumes) >= 5
    made = cells(grid)
    assert len(made) == count and len({cell.directory for cell in made}) == len(made)
    seen = {planned_steps(cell) for cell in made}
    assert len(seen) == 1  # the same number of images in every cell
    commands = {step.output: step.command for step in grid.steps_before()}
    for volume in grid.volumes.values():
        (store,) = volume["task.train"]
        assert f" --size {volume['amount']} " in commands[store] and " --seed " not in commands[store]
    assert " --seed 1 " in commands[grid.held_out]
    for cell in made[:5]:
        assert parse(cell.arguments)[0].task.valid == {"drawn": grid.held_out}


def test_the_shipped_grid_of_text_is_readable(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = read_prepared_grid(ROOT / "configs/pangu_pi/studies/scaling_tiny.yaml", {}, Scaling)
    for cell in cells(text):
        config = parse(cell.arguments)[0]
        volume = text.volumes[cell.variant.split("_")[1]]
        assert config.batch.size * planned_steps(cell) == volume["amount"]
