"""The grid trains what is missing and nothing else, and its statistics are the textbook's."""

import json
import math
import sys
from dataclasses import replace

import pytest
import yaml

from eval.__main__ import main
from eval.grid.grid import GridError, cells, is_trained, read_grid, train_all
from eval.grid.measures import quantities_of
from eval.grid.statistics import paired_difference
from eval.models import load_model
from eval.probes.latency import compare_latency
from eval.studies.compare import Comparison, differences, write_comparison
from tests.pretrain.conftest import TINY

# Stands in for pretrain/train.py: takes its arguments, leaves its files, counts its calls.
STUB = """
import json, pathlib, shutil, sys
values = dict(zip((a.removeprefix("--") for a in sys.argv[2::2]), sys.argv[3::2]))
run = pathlib.Path(values["output"])
with open({calls!r}, "a") as out:
    out.write(f"{{run}}\\n")
if pathlib.Path({calls!r}).with_name("fail").exists() and "both" in str(run):
    sys.exit("stub: out of luck")
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text("steps: 4\\n")
terms = json.loads(values["task.model_overrides"])["series_terms"]
loss = 3.0 + 0.1 * int(values["seed"]) - 0.01 * terms
rows = [{{"kind": "train", "step": 4, "loss": loss, "tokens": 4096, "seconds": 2.0}},
        {{"kind": "valid", "step": 4, "loss": loss, "bits_per_byte/en": loss / 2, "seconds": 2.0}}]
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
shutil.copytree({model!r}, run / "checkpoints" / "step_00000004", dirs_exist_ok=True)
"""


@pytest.fixture
def grid_file(tmp_path, tiny_model, corpus):
    (tmp_path / "stub.py").write_text(STUB.format(calls=str(tmp_path / "calls"), model=str(tiny_model)))
    grid = {
        "title": "A grid",
        "config": str(tmp_path / "base.yaml"),
        "output": str(tmp_path / "cells"),
        "report": str(tmp_path / "docs" / "grid.md"),
        "base": "base",
        "seeds": [1, 2, 3],
        "launcher": [sys.executable, str(tmp_path / "stub.py")],
        "measure": ["collapse", "latency"],
        "text": [str(corpus / "valid.en.jsonl")],
        "tokens": 200,
        "latency_rounds": 2,
        "variants": {
            "base": {"task.model_overrides": {"series_terms": 1}},
            "both": {"task.model_overrides": {"series_terms": 2}},
        },
    }
    (tmp_path / "shape.yaml").write_text(json.dumps(TINY))
    task = {"model": str(tmp_path / "shape.yaml"), "train": ["shards"], "valid": {"en": "shards"}}
    task = {"class_path": "pretrain.tasks.LanguageModelTask", "init_args": task}
    batch = {"size": 8, "micro_size": 8}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"task": task, "output": "x", "steps": 4, "batch": batch}))
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    return path


def calls(grid_file):
    path = grid_file.with_name("calls")
    return path.read_text().splitlines() if path.exists() else []


def test_the_whole_grid_and_then_nothing_twice(grid_file, capsys):
    assert main(["ablation", "--config", str(grid_file)]) == 0
    assert len(calls(grid_file)) == 6
    report = (grid_file.parent / "docs" / "grid.md").read_text()
    assert "6 of 6 cells" in report and "| `both` |" in report
    assert {p.name for p in (grid_file.parent / "docs" / "grid").iterdir()} == {"comparison.png", "layers.png"}
    before = {p: p.stat().st_mtime_ns for p in (grid_file.parent / "cells").rglob("*.json")}
    assert main(["ablation", "--config", str(grid_file)]) == 0
    assert len(calls(grid_file)) == 6
    assert before == {p: p.stat().st_mtime_ns for p in (grid_file.parent / "cells").rglob("*.json")}


def test_a_failed_cell_stops_with_its_message_and_is_done_next_time(grid_file, capsys):
    (grid_file.parent / "fail").touch()
    assert main(["ablation", "--config", str(grid_file), "--stage", "train"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "both/seed1: training ended with code 1" in message and "stub: out of luck" in message
    (grid_file.parent / "fail").unlink()
    done = [cell.directory for cell in cells(read_grid(grid_file, Comparison)) if is_trained(cell)]
    train_all(read_grid(grid_file, Comparison))
    again = calls(grid_file)
    assert all(again.count(str(directory)) == 1 for directory in done)
    assert all(is_trained(cell) for cell in cells(read_grid(grid_file, Comparison)))


def test_a_cell_of_other_settings_is_not_taken_for_this_one(grid_file):
    grid = read_grid(grid_file, Comparison)
    train_all(grid)
    other = replace(grid, overrides={"optimizer.lr": 0.1})
    with pytest.raises(GridError, match=r"base/seed1 was trained with other settings"):
        train_all(other)
    train_all(replace(grid, launcher=["deepspeed", "--num_accelerators", "2"]))  # how it is started decides nothing
    base = grid_file.with_name("base.yaml")
    base.write_text(base.read_text().replace("steps: 4", "steps: 8"))
    with pytest.raises(GridError, match=r"settings\.json differs"):
        train_all(grid)


def test_commands_override_by_dotted_name(grid_file):
    cell = cells(read_grid(grid_file, Comparison))[1]
    text = " ".join(cell.command)
    assert (cell.variant, cell.seed) == ("both", 1)
    start = f"pretrain/train.py --config {grid_file.parent}/base.yaml"
    assert start + ' --task.model_overrides {"series_terms": 2} --seed 1 --output' in text


def test_paired_difference_is_the_textbooks():
    difference = paired_difference({1: 2.9, 2: 3.1, 3: 3.0, 9: 0.0}, {1: 3.0, 2: 3.1, 3: 3.2})
    assert difference.seeds == 3
    assert difference.mean == pytest.approx(-0.1)
    assert difference.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert difference.half_width == pytest.approx(4.302652729911275 * 0.1 / math.sqrt(3))
    assert not difference.clear
    assert paired_difference({1: 2.0, 2: 2.1, 3: 2.2}, {1: 3.0, 2: 3.11, 3: 3.19}).clear
    assert paired_difference({1: 2.0}, {1: 3.0}).half_width == math.inf
    assert not paired_difference({1: 2.0}, {2: 3.0}).clear


def fake(losses, dimension=5.0):
    layer = {"effective_dimension": dimension, "diversity": 0.5}
    cell = {"parameters": 10, "layers": 2, "tokens": 100.0, "collapse": [layer, layer]}
    return {seed: {**cell, "valid": {"loss": loss, "bits_per_byte/en": loss / 2}} for seed, loss in losses.items()}


def test_noise_is_called_noise(grid_file):
    grid = read_grid(grid_file, Comparison)
    base = fake({1: 3.0, 2: 3.1, 3: 3.2})

    def found(losses):
        measured = {"base": base, "both": fake(losses)}
        return differences(grid, measured, quantities_of(grid, measured)[0])["both"]

    same = found({1: 3.01, 2: 3.0, 3: 3.25})
    assert (round(same.estimate.value, 4), same.seeds, same.judgement) == (-0.0133, 3, "not distinguishable")
    assert found({1: 2.9, 2: 3.001, 3: 3.099}).judgement == "lower"
    assert found({1: 3.1, 2: 3.2, 3: 3.301}).judgement == "higher"


def test_the_report_of_a_half_done_grid(grid_file):
    grid = read_grid(grid_file, Comparison)
    measured = {"base": fake({1: 3.0, 2: 3.1}), "both": fake({1: 2.9})}
    latency = {"base": {"median": 1.0, "lower": 0.9, "upper": 1.2}}
    text = write_comparison(grid, measured, latency, str(grid_file)).read_text()
    assert "1.00 (0.90-1.20)" in text and "3.0500 ± 0.0707" in text and "2.9000 |" in text
    assert "3 of 6 cells" in text and "one common seed" in text
    with pytest.raises(GridError, match="no measured cell of the base variant"):
        write_comparison(grid, {"both": fake({1: 2.9})}, {}, str(grid_file))
    del measured["both"][1]["collapse"]
    with pytest.raises(GridError, match=r"both/seed1/cell\.json was measured without collapse; remove it"):
        write_comparison(grid, measured, {}, str(grid_file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "nobody"}, "base is 'nobody', which is not among the variants"),
        ({"sedes": [1]}, "unknown field 'sedes'"),
        ({"variants": {"base": 3}}, r"variants\.base: Input should be an object, found 3"),
        ({"text": None}, "text: measuring collapse needs held-out files"),
        ({"measure": None}, r"text: nothing reads it; ask for collapse, as by measure: \[collapse, latency\]"),
        ({"measure": ["heat"]}, "measure: unknown 'heat'; known are collapse, latency"),
        ({"config": "nowhere.yaml"}, r"config nowhere\.yaml is not there"),
    ],
)
def test_grid_errors_name_the_field(grid_file, change, message):
    content = yaml.safe_load(grid_file.read_text()) | change
    grid_file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(GridError, match=message):
        read_grid(grid_file, Comparison)


def test_the_shipped_grids_are_readable():
    from pathlib import Path

    for path in sorted((Path(__file__).parents[2] / "configs" / "pangu_pi" / "studies").glob("ablation_*.yaml")):
        if "variants" in yaml.safe_load(path.read_text()):
            assert len(cells(read_grid(path, Comparison))) >= 15


def test_latency_is_measured_in_turns(tiny_model):
    model = load_model(str(tiny_model), "cpu").model
    figures = compare_latency({"a": model, "b": model}, rounds=3, prompt=8, tokens=2)
    assert list(figures) == ["a", "b"]
    assert all(0 < figure.lower <= figure.median <= figure.upper for figure in figures.values())
