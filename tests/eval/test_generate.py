"""Generation runs no code that lies beside a model unless the user says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.commands import GenerateOptions
from eval.language.generate import run
from eval.models import ModelLoadError


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A model of another type with Python code of its own, which leaves a mark when it is imported."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    classes = {"AutoConfig": "modeling_foreign.ForeignConfig", "AutoModelForCausalLM": "modeling_foreign.Foreign"}
    (folder / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": classes}))
    (folder / "modeling_foreign.py").write_text(
        "from pathlib import Path\n"
        "from transformers import PretrainedConfig\n"
        f"Path({str(tmp_path / 'mark')!r}).touch()\n"
        "class ForeignConfig(PretrainedConfig):\n    model_type = 'foreign'\n"
        "class Foreign:\n    config_class = ForeignConfig\n"
    )
    return folder


def test_code_of_a_model_is_not_run_unasked(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="not run unless you say --trust_remote_code true"):
        run(GenerateOptions(str(foreign)))
    assert not (tmp_path / "mark").exists()


def test_it_is_run_when_asked(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(Exception):  # noqa: B017  # it is no model; only that its code ran matters
        run(GenerateOptions(str(foreign), trust_remote_code=True))
    assert (tmp_path / "mark").exists()
