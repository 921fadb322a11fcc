"""Benchmarks that train through our engine still run, as small as they go. Their figures are not looked at."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest

from pretrain.ranks.world import initialise_world
from tests.pretrain.conftest import ROOT, TINY


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the test names."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module(request.param)


@pytest.mark.parametrize("benchmark", ["engine_overhead"], indirect=True)
def test_a_step_of_the_engine_beside_a_plain_one(benchmark, tmp_path, monkeypatch, capsys):
    shape = tmp_path / "tiny.yaml"
    shape.write_text(json.dumps(TINY))
    smallest = ["--sequence_length=32", "--batch_size=2", "--steps=1", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", ["engine_overhead", f"--model={shape}", *smallest])
    benchmark.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["batch_size"] == 2 and "zero_1" in json.dumps(result)


@pytest.mark.parametrize("benchmark", ["plan_memory"], indirect=True)
def test_what_is_planned_beside_what_is_measured(benchmark, tmp_path):
    config = benchmark.configuration(benchmark.TINY, tmp_path, stage=3, ranks=1, accumulation=2, precision="fp32")
    assert (config.batch.size, config.batch.micro_size) == (4, 2)
    benchmark.train(config, initialise_world())
    assert benchmark.predict_moment(benchmark.TINY, 3, 1, 2, "fp32").total > 1e5
