"""benchmarks/scaling.py: its formulas, and its simulation with a few ranks, which checks itself against our code."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from tests.pretrain.conftest import ROOT

RANKS = 16


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return {name: importlib.import_module(f"scaling_{name}") for name in ("communication", "simulation")}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_communication_grows_with_micro_batches_only_where_each_is_reduced(modules):
    sent = modules["communication"].sent  # weights in bf16, gradients in fp32
    assert sent(1, 1000, 1000, 8) == sent(1, 1000, 1000) == pytest.approx((2 * 4 + 2) * 999)
    assert sent(2, 1000, 1000) == sent(1, 1000, 1000)
    assert sent(2, 1000, 1000, 8) == pytest.approx((2 * 8 * 4 + 2) * 999)
    assert sent(3, 1000, 1000, 8, reuse=0) == pytest.approx(8 * (2 * 2 + 4) * 999)
    assert sent(3, 1000, 1000, reuse=400) == pytest.approx((2 * 1000 * 2 - 200 * 2 + 1000 * 4) * 0.999)
    assert sent(0, 1000, 1) == 0


def test_the_meeting_point_is_where_sending_takes_as_long_as_computing(modules):
    communication = modules["communication"]
    cluster, shape = communication.CLUSTERS[1], communication.shapes(ROOT / "configs" / "pangu_pi" / "models")["1B Pro"]
    assert shape.parameters == 995_604_736
    tokens = communication.meeting_point(1, shape, cluster, 0.4)
    computing = tokens * shape.flops / (312e12 * 0.4)
    assert computing == pytest.approx(communication.sent(1, shape.parameters, 4096) / 200e9)


@pytest.mark.slow
def test_the_simulation_runs_on_our_code(modules):
    """Slices against the global batch and converted against cut tensors are asserted inside."""
    simulation = modules["simulation"]
    rows = [
        *simulation.order(RANKS, 64 * RANKS),
        *simulation.ledger(RANKS, 64 * RANKS),
        *simulation.checkpoints(RANKS, 4),
        simulation.conversion(RANKS, 64, 1),
        simulation.conversion(RANKS, 64, 3),
        *simulation.heartbeat(RANKS, 8),
    ]
    assert all(row.value > 0 for row in rows)
    heard = next(row for row in rows if row.what.startswith("beats heard"))
    assert heard.value == RANKS - 1
