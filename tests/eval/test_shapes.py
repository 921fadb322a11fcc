"""The sweep finds every shape of the budget, at the budget, and its correlations are Spearman's."""

import sys

import pytest
import yaml

from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_config import load_model_config
from eval.__main__ import main
from eval.grid.grid import GridError, read_grid
from eval.studies.shapes import FFN_MULTIPLE, Shapes, correlations, find_shapes, recommend

MODEL = {"vocab_size": 260, "tie_word_embeddings": True, "series_terms": 1, "shortcut_count": 0}
STUB = """
import json, pathlib, shutil, sys
values = dict(zip((a.removeprefix("--") for a in sys.argv[2::2]), sys.argv[3::2]))
run = pathlib.Path(values["output"])
run.mkdir(parents=True, exist_ok=True)
depth = json.loads(values["task.model_overrides"])["num_hidden_layers"]
loss = 3.0 - 0.01 * depth + 0.001 * int(values["seed"])
rows = [{{"kind": "train", "step": 4, "loss": loss, "tokens": 4096, "seconds": 2.0, "tokens_per_second": 9.0}},
        {{"kind": "valid", "step": 4, "loss": loss, "bits_per_byte/en": loss / 2, "seconds": 2.0}}]
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
shutil.copytree({model!r}, run / "checkpoints" / "step_00000004", dirs_exist_ok=True)
"""


@pytest.fixture
def sweep_file(tmp_path, tiny_model):
    (tmp_path / "stub.py").write_text(STUB.format(model=str(tiny_model)))
    (tmp_path / "train.yaml").write_text("steps: 4\n")
    sweep = {
        "title": "A sweep",
        "config": str(tmp_path / "train.yaml"),
        "output": str(tmp_path / "cells"),
        "report": str(tmp_path / "docs" / "shapes.md"),
        "seeds": [1, 2],
        "launcher": [sys.executable, str(tmp_path / "stub.py")],
        "parameters": 100_000,
        "depths": list(range(1, 21)),
        "widths": [32, 48, 64],
        "head_dim": 16,
        "model": MODEL,
        "latency_rounds": 2,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def test_shapes_meet_the_budget_and_none_is_missed(sweep_file):
    sweep = read_grid(sweep_file, Shapes)
    found = {shape.name for shape in find_shapes(sweep)}
    assert len(found) >= 8
    for name, overrides in sweep.all_variants.items():
        size = count_parameters(load_model_config(overrides["task.model_overrides"])).total
        assert abs(size / 100_000 - 1) <= 0.03 and name in found
    for width in sweep.widths:  # by trying every FFN size
        for depth in sweep.depths:
            heads = {"num_attention_heads": width // 16, "num_key_value_heads": width // 16, "head_dim": 16}
            fits = False
            for size in range(-(-width // FFN_MULTIPLE) * FFN_MULTIPLE, 4 * width + 1, FFN_MULTIPLE):
                fields = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": size}
                total = count_parameters(load_model_config(MODEL | heads | fields)).total
                fits |= abs(total / 100_000 - 1) <= 0.03
            assert fits == any(name.startswith(f"d{width}_l{depth}_") for name in found)


def test_the_whole_sweep(sweep_file, capsys):
    assert main(["shapes", "--config", str(sweep_file), "--stage", "list"]) == 0
    assert "shapes, 2 seeds" in capsys.readouterr().out and not (sweep_file.parent / "cells").exists()
    assert main(["shapes", "--config", str(sweep_file)]) == 0
    report = (sweep_file.parent / "docs" / "shapes.md").read_text()
    assert "| depth | +" in report and "| width | -" in report and "`d32_l" in report
    assert (sweep_file.parent / "docs" / "shapes" / "shapes.png").is_file()


def test_correlations_are_spearmans(sweep_file):
    shapes = {shape.name: shape for shape in find_shapes(read_grid(sweep_file, Shapes))}
    loss = {name: 5.0 - shape.num_hidden_layers for name, shape in shapes.items()}
    found = correlations(shapes, loss, {})
    assert found["depth"][0] == pytest.approx(1.0) and found["width"][0] < 0
    assert "tokens/s" not in found  # not measured for every shape


def test_the_recommended_shape_is_inside_the_speed_budget():
    loss, speed = {"deep": 1.0, "middle": 2.0, "flat": 3.0}, {"deep": 40.0, "middle": 60.0, "flat": 100.0}
    assert recommend(loss, speed, 0.5) == "middle"
    assert recommend(loss, speed, 0.3) == "deep"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": [3]}, "only . shapes of 100,000 parameters"),
        ({"widths": [32, 40]}, "widths: 40 is no multiple of head_dim 16"),
        ({"variants": {"a": {}}}, "variants: a shape sweep finds its own"),
    ],
)
def test_sweep_errors_name_the_field(sweep_file, change, message):
    sweep_file.write_text(yaml.safe_dump(yaml.safe_load(sweep_file.read_text()) | change))
    with pytest.raises(GridError, match=message):
        read_grid(sweep_file, Shapes)
