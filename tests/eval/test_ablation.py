"""The grid trains what is missing and nothing else, and its statistics are the textbook's."""

import math
import sys
from dataclasses import replace

import pytest
import yaml

from eval.__main__ import main
from eval.grid.grid import GridError, cells, is_trained, read_grid, train_all
from eval.models import load_model
from eval.probes.latency import compare_latency
from eval.studies.ablation import Ablation
from eval.studies.ablation_report import comparison_table, paired_difference, verdicts, write_ablation_report

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
        "text": [str(corpus / "valid.en.jsonl")],
        "tokens": 200,
        "latency_rounds": 2,
        "variants": {
            "base": {"task.model_overrides": {"series_terms": 1}},
            "both": {"task.model_overrides": {"series_terms": 2}},
        },
    }
    (tmp_path / "base.yaml").write_text("steps: 4\n")
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
    assert {p.name for p in (grid_file.parent / "docs" / "grid").iterdir()} == {"loss.png", "layers.png"}
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
    done = [cell.directory for cell in cells(read_grid(grid_file, Ablation)) if is_trained(cell)]
    train_all(read_grid(grid_file, Ablation))
    again = calls(grid_file)
    assert all(again.count(str(directory)) == 1 for directory in done)
    assert all(is_trained(cell) for cell in cells(read_grid(grid_file, Ablation)))


def test_a_cell_of_other_settings_is_not_taken_for_this_one(grid_file):
    grid = read_grid(grid_file, Ablation)
    train_all(grid)
    other = replace(grid, overrides={"optimizer.lr": 0.1})
    with pytest.raises(GridError, match=r"base/seed1 was trained with other settings"):
        train_all(other)
    train_all(replace(grid, launcher=["deepspeed", "--num_accelerators", "2"]))  # how it is started decides nothing
    grid_file.with_name("base.yaml").write_text("steps: 8\n")
    with pytest.raises(GridError, match=r"settings\.json differs"):
        train_all(grid)


def test_commands_override_by_dotted_name(grid_file):
    cell = cells(read_grid(grid_file, Ablation))[1]
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
    grid = read_grid(grid_file, Ablation)
    base = fake({1: 3.0, 2: 3.1, 3: 3.2})
    same = verdicts(grid, {"base": base, "both": fake({1: 3.01, 2: 3.0, 3: 3.25})})
    assert same == ["- `both`: -0.0133 nats (3 seeds): not distinguishable from `base`."]
    lower = verdicts(grid, {"base": base, "both": fake({1: 2.9, 2: 3.001, 3: 3.099})})
    assert "lower loss than `base`, beyond the noise" in lower[0]
    higher = verdicts(grid, {"base": base, "both": fake({1: 3.1, 2: 3.2, 3: 3.301})})
    assert "higher loss" in higher[0]


def test_the_report_of_a_half_done_grid(grid_file):
    grid = read_grid(grid_file, Ablation)
    measured = {"base": fake({1: 3.0, 2: 3.1}), "both": fake({1: 2.9})}
    table = comparison_table(grid, measured, {"base": {"median": 1.0, "lower": 0.9, "upper": 1.2}})
    assert "1.00 (0.90-1.20)" in table[2] and "3.0500 ± 0.0707" in table[2] and "2.9000 |" in table[3]
    text = write_ablation_report(grid, measured, {}, str(grid_file)).read_text()
    assert "3 of 6 cells" in text and "one common seed" in text
    with pytest.raises(GridError, match="no finished cell of the base variant"):
        write_ablation_report(grid, {"both": fake({1: 2.9})}, {}, str(grid_file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "nobody"}, "base is 'nobody', which is not among the variants"),
        ({"sedes": [1]}, "unknown field 'sedes'"),
        ({"variants": {"base": 3}}, r"variants\.base: Input should be an object, found 3"),
        ({"text": None}, "missing fields: text"),
        ({"config": "nowhere.yaml"}, r"config nowhere\.yaml is not there"),
    ],
)
def test_grid_errors_name_the_field(grid_file, change, message):
    content = yaml.safe_load(grid_file.read_text()) | change
    grid_file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(GridError, match=message):
        read_grid(grid_file, Ablation)


def test_the_shipped_grids_are_readable():
    from pathlib import Path

    for path in sorted((Path(__file__).parents[2] / "configs" / "pangu_pi" / "studies").glob("ablation_*.yaml")):
        if "variants" in yaml.safe_load(path.read_text()):
            assert len(cells(read_grid(path, Ablation))) >= 15


def test_latency_is_measured_in_turns(tiny_model):
    model = load_model(str(tiny_model), "cpu").model
    figures = compare_latency({"a": model, "b": model}, rounds=3, prompt=8, tokens=2)
    assert list(figures) == ["a", "b"]
    assert all(0 < figure.lower <= figure.median <= figure.upper for figure in figures.values())
