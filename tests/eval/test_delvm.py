"""The DeLVM experiment prepares and trains once, measures every cell, and says what holds and what does not."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from arch.pangu_pi.accounting import count_flops
from arch.pangu_pi.load_config import load_model_config
from common.token_shards import Meta, ShardMeta
from eval.__main__ import main
from eval.grid.grid import cells, planned_steps
from eval.grid.preparation import read_prepared_grid
from eval.grid.statistics import paired_difference
from eval.studies.delvm import Delvm
from eval.studies.delvm_report import balance_verdicts, best, gap, has_effect, judged, shown
from pretrain.command_line import parse
from tests.eval.test_vision import write_photographs
from tokenizer.visual.patches import PatchTokenizer

SIZE, PATCH, CODES = 16, 8, 12
TOKENS = (SIZE // PATCH) ** 2
TASKS = {"seg": "inversion", "edge": "edges"}

# Stands in for pretrain/train.py: takes its arguments, leaves its files. More overrides, lower losses.
STUB = """
import json, pathlib, shutil, sys
values = dict(zip((a.removeprefix("--") for a in sys.argv[2::2]), sys.argv[3::2]))
run, root = pathlib.Path(values["output"]), pathlib.Path({root!r})
run.mkdir(parents=True, exist_ok=True)
names = ["seg", "edge"]
task = {{"train": [str(root / n) for n in names], "valid": {{n: str(root / n) for n in names}}}}
task |= {{"images_per_sentence": 8, "passes": 2}}
(run / "config.yaml").write_text(json.dumps({{"task": {{"init_args": task}}, "batch": {{"micro_size": 2}}}}))
rows = [{{"kind": "train", "step": 4, "loss": 2.0, "tokens": 64, "seconds": 2.0, "tokens_per_second": 9}}]
for step in (0, 2, 4):
    losses = {{f"loss/{{n}}": 3.0 - 0.1 * step - 0.01 * len(values) for n in names}}
    rows.append({{"kind": "valid", "step": step, "loss": 2.0, **losses, "seconds": 2.0}})
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
shutil.copytree(root / "model", run / "checkpoints" / "step_00000004", dirs_exist_ok=True)
"""


def write_shards(folder: Path, task: str, seed: int) -> None:
    """Nine records of random codes, as `prepare` writes them."""
    folder.mkdir()
    codes = np.random.default_rng(seed).integers(0, CODES, 9 * 2 * TOKENS)
    codes.astype("<u2").tofile(folder / "00000.ds")
    (np.arange(1, 10) * 2 * TOKENS).astype("<u8").tofile(folder / "00000.ds.index")
    inputs = {"tokenizer": {"tokens_per_image": TOKENS}, "pairs": {"task": task}}
    shards = [ShardMeta("00000.ds", codes.size, 9, 9 * 2 * SIZE * SIZE * 3, "", "")]
    Meta("h", CODES, 2, None, None, shards, {}, inputs).save(folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """The YAML of a small experiment whose runs are stubs that leave a tiny random model."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("delvm")
    for number, (name, task) in enumerate(TASKS.items()):
        write_shards(root / name, task, number)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CODES, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "model")
    patches = np.random.default_rng(9).integers(0, 256, (CODES, 3 * PATCH * PATCH), dtype=np.uint8)
    PatchTokenizer(patches, SIZE).save(root / "model" / "tokenizer")
    write_photographs(root / "valid.parquet", 5, 0)
    sets = {name: {"input": ["{data}/valid.parquet"], "pairs": {"task": task}} for name, task in TASKS.items()}
    (root / "sets.yaml").write_text(yaml.safe_dump({"definitions": {"data": None}, **sets}))
    (root / "stub.py").write_text(STUB.format(root=str(root)))
    (root / "train.yaml").write_text("steps: 4\n")
    stub = f"{sys.executable} {root / 'stub.py'} train --output {{work}}/teacher"
    content = {
        "title": "An experiment",
        "config": str(root / "train.yaml"),
        "output": "{work}",
        "report": str(root / "docs" / "delvm.md"),
        "seeds": [1, 2],
        "launcher": [sys.executable, str(root / "stub.py")],
        "definitions": {"data": None, "work": str(root / "cells")},
        "preparation": [{"name": "t", "title": "teacher", "output": "{work}/teacher", "command": stub}],
        "variants": {
            "mixture": {},
            "aug_natural": {},
            "resampling": {},
            "augment": {},
            "kd": {},
            "longer": {},
            "x5": {},
        },
        "titles": {n: f"the {n}" for n in ("mixture", "aug_natural", "resampling", "augment", "kd", "longer", "x5")},
        "scarce": ["edge"],
        "balance": {n: n for n in ("mixture", "aug_natural", "resampling", "augment")},
        "distilled": {"plain": "augment", "longer": "longer", "students": ["kd"], "teacher": "{work}/teacher"},
        "dose": {"task": "edge", "base": "mixture", "copies": {"x5": 5}, "images": {"longer": 40}},
        "prompted": {
            "sets": str(root / "sets.yaml"),
            "define": {"data": "{data}"},
            "variants": ["augment", "mixture"],
            "main": "augment",
        },
        "runs": {"teacher": "{work}/teacher"},
    }
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_whole_experiment_and_then_nothing_twice(experiment, capsys):
    command = ["delvm", "--config", str(experiment), "--define", f"data={experiment.parent}"]
    assert main(command) == 0
    report = (experiment.parent / "docs" / "delvm.md").read_text()
    assert "14 of 14 cells" in report
    for heading in ("Balance", "Distillation", "Dose", "Single runs", "Visual prompting"):
        assert re.search(rf"^## {heading}", report, re.MULTILINE), heading
    assert "no effect at this scale" in report and "Does the answer follow the prompt?" in report
    folder = experiment.parent / "docs" / "delvm"
    pictures = set(re.findall(r"\(delvm/(.*?\.png)\)", report))
    assert {"balance.png", "curves.png", "distillation.png", "dose.png", "grid_seg.png", "grid_edge.png"} == pictures
    assert all((folder / name).stat().st_size > 1000 for name in pictures)
    cell = json.loads((experiment.parent / "cells" / "kd" / "seed2" / "cell.json").read_text())
    assert set(cell["tasks"]) == set(cell["train"]) == {"seg", "edge"} and cell["tasks"]["seg"]["sentences"] == 2
    assert len(cell["tasks"]["edge"]["loss_by_pairs"]) == 4 and [step for step, _ in cell["curve"]] == [0, 2, 4]
    before = {p: p.stat().st_mtime_ns for p in (experiment.parent / "cells").rglob("*.json")}
    assert main(command) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (experiment.parent / "cells").rglob("*.json")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"balance": {"mixture": "other"}}, "balance: missing fields: aug_natural, resampling, augment"),
        ({"titles": {"mixture": "M"}}, "titles: there is none for 'aug_natural'"),
        (
            {"dose": {"task": "edge", "base": "nobody", "copies": {}, "images": {}}},
            "'nobody' is not among the variants",
        ),
        ({"prompted": {"sets": "x", "variants": ["nobody"], "main": "augment"}}, "'nobody' is not among the variants"),
        ({"runs": {}, "definitions": {}}, "--define data: there is no such definition"),
    ],
)
def test_errors_are_one_line(experiment, tmp_path, change, message, capsys):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(experiment.read_text()) | change))
    assert main(["delvm", "--config", str(path), "--define", "data=x"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("eval delvm: ") and message in error


def test_two_standard_errors_make_an_effect():
    clear = paired_difference({1: 1.0, 2: 1.1, 3: 1.2}, {1: 2.0, 2: 2.0, 3: 2.0})
    unclear = paired_difference({1: 1.0, 2: 3.0, 3: 2.0}, {1: 2.0, 2: 2.0, 3: 2.1})
    alone = paired_difference({1: 1.0}, {1: 2.0})
    assert (has_effect(clear), has_effect(unclear), has_effect(alone)) == (True, False, False)
    assert judged(clear, "a", "b") == "a: lower than b (**-0.9000 ± 0.0577**, 3 seeds)."
    assert "no effect at this scale" in judged(unclear, "a", "b") and "one common seed" in judged(alone, "a", "b")
    assert shown(paired_difference({}, {})) == ""


def made_cell(valid: float, train: float, lowest: float) -> dict:
    losses = {task: {"loss": valid} for task in ("seg", "edge")}
    curve = [[0, {"seg": 6.0, "edge": 6.0}], [1, {"seg": lowest, "edge": lowest}], [2, {"seg": valid, "edge": valid}]]
    return {"tasks": losses, "train": {task: {"loss": train} for task in losses}, "curve": curve}


def test_verdicts_count_seeds(experiment):
    """The largest gap is re-sampling's, the lowest loss the method's, and the price is named."""
    grid = read_prepared_grid(experiment, {"data": "x"}, Delvm)
    numbers = {"mixture": (4.8, 4.5), "aug_natural": (4.7, 4.5), "resampling": (4.9, 3.9), "augment": (4.2, 4.0)}
    measured = {
        arm: {seed: made_cell(valid + 0.01 * seed, train, valid - 0.1) for seed in (1, 2)}
        for arm, (valid, train) in numbers.items()
    }
    assert gap(measured["resampling"], "edge") == pytest.approx({1: 1.01, 2: 1.02})
    assert best(measured["resampling"], "edge") == pytest.approx({1: 4.8, 2: 4.8})
    text = "\n".join(balance_verdicts(grid, measured, ["seg", "edge"]))
    assert "edge: augment has the lowest validation loss in 2 of 2 seeds" in text
    assert "largest gap between training and validation in 2 of 2 seeds; it is 1.015 nats." in text
    assert "re-sampling ends 0.115 nats above its lowest" in text and "seg, the price: augment: lower" in text
    measured["resampling"] = {seed: made_cell(4.9, 4.8, 4.9) for seed in (1, 2)}
    text = "\n".join(balance_verdicts(grid, measured, ["seg", "edge"]))
    assert "in 0 of 2 seeds; it is 0.100 nats, below 0.3: the scarce set was hardly over-fitted" in text


def test_the_shipped_experiment_is_fair_and_reads_what_it_prepares(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    grid = read_prepared_grid(root / "configs/delvm/studies/experiment_cpu.yaml", {"data": "DATA"}, Delvm)
    made = {step.output for step in grid.preparation}
    for cell in cells(grid):
        task = cell.identity["config"]["task"]["init_args"] | {
            name.removeprefix("task."): value for name, value in cell.identity["overrides"].items()
        }
        assert len(task["train"]) == len(task["weights"])
        assert {*task["train"], *task["valid"].values()} <= made, cell.variant
        assert task.get("teacher", next(iter(made))) in made
    commands = [shlex.split(step.command) for step in grid.preparation]
    trained = [words[2:] for words in commands if words[1] == "pretrain/train.py"]
    trained += [list(cell.arguments) for cell in cells(grid) if cell.seed == grid.seeds[0]]
    tasks = {config.output: config.task for config, _ in map(parse, trained)}
    assert tasks[grid.distilled.teacher].model_config.hidden_size == 160
    kd_only = tasks[f"{grid.output}/kd_only/seed1"]
    assert (kd_only.distillation.weight_gt, kd_only.distillation.weight_kd) == (0, 1)
    arms = [cell for cell in cells(grid) if cell.variant in grid.balance.arms()]
    assert {planned_steps(cell) for cell in arms} == {300}
    # Equal compute: a step with a teacher costs (3 N_S + N_T) / (3 N_S) plain ones.
    definitions = yaml.safe_load((root / "configs/delvm/studies/experiment_cpu.yaml").read_text())["definitions"]
    student = yaml.safe_load((root / "configs/delvm/models/pilot_cpu.yaml").read_text())
    teacher = {**student, **yaml.safe_load(definitions["teacher_shape"])}
    costs = [count_flops(load_model_config(shape), 511).forward_per_token for shape in (student, teacher)]
    longer = next(cell for cell in cells(grid) if cell.variant == grid.distilled.longer)
    assert planned_steps(longer) == pytest.approx(300 * (3 * costs[0] + costs[1]) / (3 * costs[0]), abs=1)
