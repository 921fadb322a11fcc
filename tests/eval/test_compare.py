"""Comparisons of any task: differences to the base with their intervals, the axis, and the shipped mixture."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.__main__ import main
from eval.grid.grid import GridError, cells
from eval.grid.measures import quantities_of
from eval.grid.preparation import read_prepared_grid
from eval.grid.statistics import paired_difference
from eval.studies.compare import Comparison, best_sentence, differences

ROOT = Path(__file__).resolve().parents[2]
CHANCES = {"none": 0.7, "some": 0.4, "many": 0.42}
IMAGES = 500


@pytest.fixture
def grid_file(tmp_path):
    (tmp_path / "train.yaml").write_text("steps: 8\n")
    content = {
        "title": "A comparison", "config": str(tmp_path / "train.yaml"), "output": str(tmp_path / "cells"),
        "report": str(tmp_path / "docs/compare.md"), "seeds": [1, 2, 3], "base": "none", "resamples": 200,
        "variants": {name: {} for name in CHANCES}, "axis": {"none": 0, "some": 1, "many": 10},
        "axis_title": "drawn words for each real one",
    }  # fmt: skip
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def made_up(grid, words=True):
    """Measured cells: the loss is ten times the chance of an error, images are as hard for every variant."""
    measured = {}
    for cell in cells(grid):
        rng = np.random.default_rng(cell.seed)
        chance = CHANCES[cell.variant]
        wrong = "".join("01"[int(draw < chance)] for draw in rng.random(IMAGES))
        score = {"images": IMAGES, "accuracy": wrong.count("0") / IMAGES, "similarity": 0.5, "wrong": wrong}
        measured.setdefault(cell.variant, {})[cell.seed] = {
            "valid": {"loss": 10 * chance + 0.01 * cell.seed},
            **({"benchmarks": {"one": score}} if words else {}),
        }
        cell.directory.mkdir(parents=True, exist_ok=True)
        cell.result.write_text(json.dumps(measured[cell.variant][cell.seed]))
    return measured


def test_the_report_of_words(grid_file, capsys):
    command = ["compare", "--config", str(grid_file), "--stage", "report"]
    assert main(command) == 1
    assert "no measured cell of the base variant 'none' yet" in capsys.readouterr().err
    made_up(read_prepared_grid(grid_file, {}, Comparison))
    assert main(command) == 0
    folder = grid_file.parent / "docs"
    report = (folder / "compare.md").read_text()
    assert "9 of 9 cells" in report and "drawn words for each real one" in report
    assert "## Validation loss" in report and "## Word error on the benchmarks" in report
    assert "Word accuracy by benchmark" in report and (folder / "compare" / "comparison.png").is_file()
    content = json.loads((folder / "compare.json").read_text())
    assert content["error"]["minus_base"]["some"]["judgement"] == "lower"
    assert content["loss"]["minus_base"]["some"]["value"] == pytest.approx(-3.0)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("settings.json", '{"config": {"steps": 9}}', "seed2 was trained with other settings"),
        ("settings.json", '{"config": {"st', "settings.json:1: not JSON (.*; remove the file"),
        ("cell.json", '{"valid": {"lo', "cell.json:1: not JSON (.*; remove the file"),
        ("cell.json", "[]", "cell.json: not the result of a cell; remove the file"),
    ],
)
def test_a_report_of_another_or_a_broken_cell_is_refused(grid_file, capsys, name, content, said):
    grid = read_prepared_grid(grid_file, {}, Comparison)
    made_up(grid)
    (Path(grid.output) / "some" / "seed2" / name).write_text(content)
    assert main(["compare", "--config", str(grid_file), "--stage", "report"]) == 1
    assert re.search(said.replace("(", r"\("), capsys.readouterr().err)
    assert not Path(grid.report).exists()


def test_differences_are_paired(grid_file):
    grid = read_prepared_grid(grid_file, {}, Comparison)
    measured = made_up(grid)
    loss, error = quantities_of(grid, measured)
    found = differences(grid, measured, loss)["some"]
    values = [{seed: run["valid"]["loss"] for seed, run in measured[name].items()} for name in ("some", "none")]
    paired = paired_difference(*values)
    assert found.estimate.value == paired.mean and found.estimate.high == paired.mean + paired.half_width
    found = differences(grid, measured, error)
    assert found["some"].estimate.value == pytest.approx(-0.3, abs=0.05) and found["some"].seeds == 3
    # 500 images and 3 seeds: the error of a difference of two independent variants would be about 0.018.
    assert found["some"].estimate.high - found["some"].estimate.low < 4 * 0.018
    del measured["some"][1], measured["some"][2], measured["some"][3]
    measured["some"] = {4: measured["none"][1]}
    loss, error = quantities_of(grid, measured)
    for quantity in (loss, error):
        assert differences(grid, measured, quantity)["some"].judgement == "one common seed: no statement about noise"


def test_a_variant_that_diverged_is_not_the_best(grid_file):
    grid = read_prepared_grid(grid_file, {}, Comparison)
    measured = made_up(grid, words=False)
    measured["many"][1]["valid"]["loss"] = float("nan")
    (loss,) = quantities_of(grid, measured)
    assert next(iter(loss.values)) == "many" and best_sentence(grid, loss).startswith("Lowest mean: `some`.")
    assert differences(grid, measured, loss)["many"].judgement == "a run has no finite value"
    (loss,) = quantities_of(grid, {"many": measured["many"]})
    assert best_sentence(grid, loss) == "No variant has finite values alone."
    for variant, runs in measured.items():
        for seed, run in runs.items():
            (Path(grid.output) / variant / f"seed{seed}" / "cell.json").write_text(json.dumps(run))
    assert main(["compare", "--config", str(grid_file), "--stage", "report"]) == 0
    assert "| nan ± nan |" in Path(grid.report).read_text()


def test_the_best_variant_at_an_end_is_no_optimum(grid_file):
    grid = read_prepared_grid(grid_file, {}, Comparison)
    measured = made_up(grid, words=False)
    (loss,) = quantities_of(grid, measured)
    assert best_sentence(grid, loss) == "Lowest mean: `some`."
    loss.values["many"] = np.array([0.1])
    assert "at an end of the axis: no optimum" in best_sentence(grid, loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "nothing"}, "base is 'nothing'"),
        ({"axis": {"none": 0, "some": 1}}, "axis: 'many' must be among the variants and have a number"),
        ({"resamples": 0}, "resamples: must be at least 1"),
    ],
)
def test_errors_name_the_field(grid_file, change, message):
    grid_file.write_text(yaml.safe_dump(yaml.safe_load(grid_file.read_text()) | change))
    with pytest.raises(GridError, match=message):
        read_prepared_grid(grid_file, {}, Comparison)


def test_a_metric_that_nobody_validated_is_named(grid_file):
    grid = read_prepared_grid(grid_file, {}, Comparison)
    measured = made_up(grid)
    del measured["some"][2]["valid"]["loss"]
    measured["some"][2]["valid"]["loss/x"] = 1.0
    with pytest.raises(GridError, match="metric: some has no 'loss'; it has loss/x"):
        quantities_of(grid, measured)


def test_the_shipped_mixture_draws_what_its_axis_says(monkeypatch):
    from pretrain.command_line import parse

    monkeypatch.chdir(ROOT)
    grid = read_prepared_grid(
        ROOT / "configs/ocr/studies/mixture_cpu.yaml", {"words": "W", "benchmarks": "DIR"}, Comparison
    )
    for cell in cells(grid):
        if cell.seed == grid.seeds[0]:
            task = parse(cell.arguments)[0].task
            drawn = 0 if task.synthetic is None else task.synthetic.size
            assert drawn / 2000 == grid.axis[cell.variant] and task.weights is None and task.copies == 0
            assert task.train == ["DIR/iiit5k_train.parquet"]
            assert task.initial_weights == grid.preparation[-1].output and (drawn == 0 or task.synthetic.seed == 1)


def test_the_shipped_search_for_the_setting_changes_one_part_at_a_time(monkeypatch):
    from pretrain.command_line import parse

    monkeypatch.chdir(ROOT)
    grid = read_prepared_grid(ROOT / "configs/ocr/studies/plateau_cpu.yaml", {"words": "W"}, Comparison)
    stores = {step.output for step in grid.preparation}
    for cell in cells(grid):
        config = parse(cell.arguments)[0]
        assert config.steps * config.batch.size == 16_000
        assert {*config.task.train, *config.task.valid.values()} <= stores
