"""Every YAML of configs/ is read as what its folder says it is: the shape of a model, a run, a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arch.clip4str.configuration import load_clip4str_config
from arch.pangu_pi.load_config import load_model_config
from arch.parseq.configuration import load_parseq_config
from arch.vq.configuration import load_visual_config
from eval.grid.grid import Grid, GridError
from eval.grid.preparation import PreparedGrid, read_defined, read_prepared_grid
from eval.prompting.sets import VisionError, parse_sets
from eval.studies.compare import Comparison
from eval.studies.delvm import Delvm
from eval.studies.ladder import Ladder
from eval.studies.scaling import Scaling
from eval.studies.shapes import Shapes
from pretrain.command_line import parse
from pretrain.errors import ConfigurationError
from tests.pretrain.test_configs import runs

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
KINDS = ("models", "runs", "studies")
SHAPES: dict[str, Callable[[Path], Any]] = {
    "parseq": load_parseq_config,
    "clip4str": load_clip4str_config,
    "vq": load_visual_config,
}
"""By system; elsewhere a model is a language model."""
STUDIES: dict[str, type[Grid]] = {"volumes": Scaling, "rows": Ladder, "balance": Delvm, "depths": Shapes}
"""By a field that no other kind of study has; elsewhere a study is a comparison."""


def files(kind: str) -> list[Path]:
    return sorted(CONFIGS.glob(f"*/{kind}/*.yaml"))


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def test_every_file_lies_in_a_folder_of_its_kind():
    found = {path for kind in KINDS for path in files(kind)}
    assert found == set(CONFIGS.rglob("*.yaml")) and len(found) > 80
    assert set(files("runs")) == set(runs())  # each of which test_configs.py reads, and begins


@pytest.mark.parametrize("path", files("models"), ids=name)
def test_a_model_is_a_shape(path: Path):
    SHAPES.get(path.parts[-3], load_model_config)(path)


@pytest.mark.parametrize("path", files("studies"), ids=name)
def test_a_study_is_a_grid_or_the_sets_of_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load(path.read_text())
    given = dict.fromkeys(content.get("definitions") or {}, "x")
    if "seeds" not in content:
        sets = {key: value for key, value in read_defined(path, given).items() if key != "definitions"}
        with pytest.raises(VisionError, match=r"\.input: x/.* is not there"):  # fields are read, then files looked for
            parse_sets(sets, name(path))
        return
    kind = next((STUDIES[field] for field in STUDIES if field in content), Comparison)
    assert issubclass(kind, PreparedGrid) or not given
    grid = read_prepared_grid(path, given, kind)  # type: ignore[type-var]
    assert grid.all_variants and grid.seeds


def test_a_file_that_was_moved_is_pointed_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    moved = "there is configs/pangu_pi/models/pangu_pi_1m.yaml"
    with pytest.raises(FileNotFoundError, match=f"configs/models/pangu_pi_1m.yaml: no such .*; {moved}$"):
        load_model_config("configs/models/pangu_pi_1m.yaml")
    with pytest.raises(GridError, match=r"; there is configs/recipe/studies/sweep_1m.yaml$"):
        read_prepared_grid(Path("configs/recipe/sweep_1m.yaml"), {}, Comparison)
    with pytest.raises(ConfigurationError, match=r"configs/delvm/runs/quickstart.yaml and configs/ocr/runs/"):
        parse(["--config", "configs/quickstart.yaml"])
