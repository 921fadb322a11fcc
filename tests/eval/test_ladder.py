"""The ladder prepares once, trains what is missing, compares at one budget, and names what is wrong with its YAML."""

import json
import math
import sys

import numpy as np
import pytest
import yaml

from common.token_shards import Meta, ShardMeta
from eval.__main__ import main
from eval.grid.grid import GridError, cells, planned_steps
from eval.studies.ladder import check_budget, read_ladder, tokens_to_reach

# Stands in for pretrain/train.py: takes its arguments, leaves its files.
STUB = """
import json, pathlib, shutil, sys
values = dict(zip((a.removeprefix("--") for a in sys.argv[2::2]), sys.argv[3::2]))
run = pathlib.Path(values["output"])
run.mkdir(parents=True, exist_ok=True)
steps = 4 + 2 * (int(values.get("rounds.count", 1)) - 1)
(run / "config.yaml").write_text(json.dumps({{"task": {{"init_args": {{"train": [{shards!r}]}}}}}}))
final = 2.0 + 0.01 * int(values["seed"]) - 0.1 * len(values)
row = {{"kind": "train", "step": steps, "loss": final, "tokens": 1024 * steps}}
rows = [row | {{"seconds": 2.0, "tokens_per_second": 9}}]
for step in range(steps + 1):
    value = final + 0.1 * (steps - step)
    rows.append({{"kind": "valid", "step": step, "loss": value, "bits_per_byte/en": value, "seconds": 2.0}})
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
shutil.copytree({model!r}, run / "checkpoints" / f"step_{{steps:08d}}", dirs_exist_ok=True)
"""


@pytest.fixture
def ladder_file(tmp_path, tiny_model):
    shards = tmp_path / "shards"
    shards.mkdir()
    np.zeros(8, "<u2").tofile(shards / "00000.ds")
    Meta("h", 10, 2, 1, 2, [ShardMeta("00000.ds", 8, 1, 32, "", "")]).save(shards)
    (tmp_path / "stub.py").write_text(STUB.format(shards=str(shards), model=str(tiny_model)))
    (tmp_path / "train.yaml").write_text("steps: 4\n")
    append = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write('x')"
    make = f'{sys.executable} -c "{append}" {{work}}/made'
    ladder = {
        "title": "A ladder",
        "config": str(tmp_path / "train.yaml"),
        "output": "{work}",
        "report": str(tmp_path / "docs" / "ladder.md"),
        "seeds": [1, 2],
        "launcher": [sys.executable, str(tmp_path / "stub.py")],
        "definitions": {"work": str(tmp_path / "cells"), "donor": None},
        "preparation": [{"name": "make", "title": "make it", "output": "{work}/made", "command": make}],
        "variants": {"base": {}, "better": {"task.initial_weights": "{donor}"}, "rounds": {"rounds.count": 2}},
        "rows": ["base", "better", "rounds"],
        "titles": {"base": "Base", "better": "+ better", "rounds": "+ rounds"},
        "paper": {"better": 1.7},
        "comparisons": [{"title": "Controls", "base": "base", "variants": ["rounds"]}],
    }
    path = tmp_path / "ladder.yaml"
    path.write_text(yaml.safe_dump(ladder))
    return path


def test_the_whole_ladder_and_then_nothing_twice(ladder_file, capsys):
    command = ["ladder", "--config", str(ladder_file), "--define", "donor=somewhere"]
    assert main(command) == 0
    report = (ladder_file.parent / "docs" / "ladder.md").read_text()
    assert "6 of 6 cells" in report and f"--config {ladder_file} --define donor=DONOR`" in report
    assert "| + better |" in report and "+1.70" in report and "## Controls" in report
    assert (
        "4,096" in report and "6,144" in report and "0.02 MB" in report
    )  # tokens of one and of two rounds; 4 bytes each
    assert (ladder_file.parent / "docs" / "ladder" / "ladder.png").is_file()
    cells_folder = ladder_file.parent / "cells"
    before = {p: p.stat().st_mtime_ns for p in cells_folder.rglob("cell.json")}
    assert len(before) == 6
    assert main(command) == 0
    assert before == {p: p.stat().st_mtime_ns for p in cells_folder.rglob("cell.json")}
    assert (cells_folder / "made").read_text() == "x"


def test_definitions_fill_every_string(ladder_file):
    ladder = read_ladder(ladder_file, {"donor": "some/where"})
    assert ladder.variants["better"] == {"task.initial_weights": "some/where"}
    assert ladder.output == str(ladder_file.parent / "cells")
    assert {cell.variant: planned_steps(cell) for cell in cells(ladder)} == {"base": 4, "better": 4, "rounds": 6}
    assert (
        read_ladder(ladder_file, {"donor": "package:eval"}).variants["better"]["task.initial_weights"].endswith("eval")
    )


@pytest.mark.parametrize(
    ("change", "define", "message"),
    [
        ({}, [], "donor is not defined; give --define donor=VALUE"),
        ({}, ["doner=x"], "--define doner: there is no such definition; known are donor, work"),
        ({}, ["donor"], "--define donor: must be NAME=VALUE"),
        ({}, ["donor=package:nobody_has_this"], "no installed package 'nobody_has_this'"),
        ({"rows": ["base", "other"]}, ["donor=x"], "'other' is not among the variants"),
        ({"titles": {"base": "B"}}, ["donor=x"], "titles: there is none for 'better'"),
        ({"preparation": [{"nome": "x"}]}, ["donor=x"], "preparation: 0: unknown field 'nome'; did you mean 'name'?"),
        ({"launcher": [sys.executable, "-c", "raise SystemExit('no luck')"]}, ["donor=x"], "no luck"),
        (
            {"preparation": [{"name": "n", "title": "t", "output": "o", "command": "false"}]},
            ["donor=x"],
            "step 't' failed",
        ),
    ],
)
def test_errors_are_one_line(ladder_file, change, define, message, capsys):
    ladder_file.write_text(yaml.safe_dump(yaml.safe_load(ladder_file.read_text()) | change))
    options = ["--define", *define] if define else []
    assert main(["ladder", "--config", str(ladder_file), *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("eval ladder: ") and message in error


def test_rows_of_another_size_are_refused(ladder_file):
    ladder = read_ladder(ladder_file, {"donor": "x"})
    measured = {"base": {1: {"parameters": 1000}}, "better": {1: {"parameters": 1029}}}
    check_budget(ladder, measured)
    measured["better"][1]["parameters"] = 1031
    with pytest.raises(GridError, match="better has 1,031 parameters and base has 1,000: more than 3% apart"):
        check_budget(ladder, measured)


def test_tokens_to_reach_interpolates():
    curve = [(0.0, 4.0), (100.0, 3.0), (200.0, 2.5)]
    assert tokens_to_reach(curve, 3.5) == 50.0
    assert tokens_to_reach(curve, 2.75) == 150.0
    assert tokens_to_reach(curve, 2.5) == 200.0
    assert tokens_to_reach(curve, 5.0) == 0.0
    assert tokens_to_reach(curve, 2.0) is None
    assert tokens_to_reach([], math.inf) is None


def test_the_shipped_ladders_are_at_one_budget_and_read_their_own_shards():
    from pathlib import Path

    from arch.pangu_pi.accounting import count_parameters
    from arch.pangu_pi.load_config import load_model_config

    for path in sorted((Path(__file__).parents[2] / "configs" / "tiny_lm" / "studies").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if "rows" not in content:
            continue
        missing = {name: "somewhere" for name, value in content["definitions"].items() if value is None}
        missing |= {name: "x" for name, value in content["definitions"].items() if str(value).startswith("package:")}
        ladder = read_ladder(path, missing)
        model = yaml.safe_load(Path(ladder.config).read_text())["task"]["init_args"]["model"]
        shape = yaml.safe_load(Path(model).read_text())
        sizes = []
        for overrides in ladder.variants.values():
            fields = shape | overrides.get("task.model_overrides", {})
            sizes.append(count_parameters(load_model_config(fields)).total)
        assert max(sizes) / min(sizes) <= 1 + ladder.tolerance, json.dumps(sizes)
        for cell in cells(ladder):
            task = dict(cell.identity["config"]["task"]["init_args"])
            changes = cell.identity["overrides"].items()
            task |= {name.removeprefix("task."): value for name, value in changes if name.startswith("task.")}
            for shards in (*task["train"], *task["valid"].values()):
                assert Path(shards).is_relative_to(ladder.output), f"{path.name}: {cell.variant} reads {shards}"
