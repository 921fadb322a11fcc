"""The host waits for the device at few places of a step, and for the other ranks once.

DeepSpeed takes other ways on a device that computes while the host goes on. Here its CPU accelerator claims to be one:
streams and events do nothing but say when somebody waits for them.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.command_line import parse
from pretrain.ranks.world import World
from pretrain.trainer import Outcome, train
from pretrain.training_step import TrainingStep
from pretrain.transfers import Reading

MICRO_BATCHES, STEPS = 3, 4
TORCH = str(Path(torch.__file__).parent)
WAITING = {
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default, torch.ops.aten.bincount.default, torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
}  # fmt: skip
"""Operators that need values of a tensor on the host, to return them or for the shape of what they return."""


class HostWaits(TorchDispatchMode):
    """Counts where the host waits, by the function that asked ("utils.py:is_invalid_grad_norm")."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.sums = 0

    def here(self) -> None:
        """The caller's caller waits."""
        frame: Any = sys._getframe(1)
        while frame.f_code.co_filename.startswith((TORCH, __file__)):
            frame = frame.f_back
        self.places[f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"] += 1

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picking = operator is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if operator in WAITING or picking:
            self.here()
        return operator(*args, **(kwargs or {}))


class Asynchronous:
    """A stream, or an event of one."""

    def __init__(self, found: list[HostWaits]) -> None:
        self.found = found

    def synchronize(self) -> None:
        self.found[-1].here()

    def query(self) -> bool:
        return True

    def wait_stream(self, _: Any) -> None: ...
    def wait_event(self, _: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def record_event(self, *_: Any) -> None: ...


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[HostWaits]]:
    """What was counted in every step of the runs of a test."""
    gc.collect()  # engines of earlier tests wait for the device when they go
    found: list[HostWaits] = [HostWaits()]
    take, plain_sum, plain_values, plain_start = TrainingStep.__call__, World.sum, Reading.values, Reading.__init__
    accelerator = get_accelerator()

    def stream(*_: Any, **__: Any) -> Asynchronous:
        return Asynchronous(found)

    for name in ("is_synchronized_device", "resolves_data_dependency", "handles_memory_backpressure"):
        monkeypatch.setattr(accelerator, name, lambda: False)
    monkeypatch.setattr(accelerator, "use_host_timers", lambda: True)
    monkeypatch.setattr(type(accelerator), "Stream", property(lambda _: stream))
    monkeypatch.setattr(type(accelerator), "Event", property(lambda _: stream))
    for name in ("current_stream", "default_stream"):
        monkeypatch.setattr(accelerator, name, stream)
    monkeypatch.setattr(accelerator, "stream", lambda _: nullcontext())
    monkeypatch.setattr(accelerator, "synchronize", lambda *_: found[-1].here())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)

    def counted_sum(self: World, values: Any) -> Any:
        found[-1].sums += 1
        return plain_sum(self, values)

    def started(self: Any, numbers: torch.Tensor) -> None:
        plain_start(self, numbers)
        self.waits_before = found[-1].places.total()

    def values(self: Any) -> Any:
        if found[-1].places.total() == self.waits_before:  # else the copy, enqueued before that wait, has arrived
            found[-1].here()
        return plain_values(self)

    def counted(self: TrainingStep, *given: Any) -> Any:
        found.append(HostWaits())
        with found[-1]:
            return take(self, *given)

    monkeypatch.setattr(World, "sum", counted_sum)
    monkeypatch.setattr(Reading, "__init__", started)
    monkeypatch.setattr(Reading, "values", values)
    monkeypatch.setattr(TrainingStep, "__call__", counted)
    yield found


def arguments(output: Path, **changes: Any) -> list[str]:
    settings = {
        "task": "tests.pretrain.toy.ToyTask", "output": output, "steps": STEPS, "batch.size": 4 * MICRO_BATCHES,
        "batch.micro_size": 4, "optimizer.lr": 0.01, "checkpoint.every": 99, "telemetry.every": 99,
        "validation.every": 99, "telemetry.tensorboard": "false", "telemetry.progress_bar": "false",
        "rounds.count": 2, "rounds.unit": "sample", "rounds.loss_source": "log",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }  # fmt: skip
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


OVERFLOW, NORM = "stage_1_and_2.py:has_overflow", "utils.py:is_invalid_grad_norm"
"""Where ZeRO asks whether gradients, in bf16, and their norm are finite: only then is the update launched."""
OVERLAPPED = "stage_1_and_2.py:independent_gradient_partition_epilogue"
"""With `overlap_comm`, whenever gradients have been sent: the whole device."""
REDUCED, GATHERED = "stage3.py:independent_gradient_partition_epilogue", "partition_parameters.py:wait"
"""Stage 3: for the stream that averages gradients, after every backward pass; and, on one rank alone, for weights."""
OURS = "engine.py:gradient_norm"
"""Without ZeRO: whether to apply the update is decided by us."""


@pytest.mark.parametrize(
    ("stage", "precision", "settings", "expected"),
    [
        (0, "fp32", {}, {OURS: 1}),
        (0, "fp32", {"optimizer__name": "muon"}, {OURS: 1}),
        (1, "fp32", {}, {NORM: 1}),
        (1, "bf16", {}, {NORM: 1, OVERFLOW: 1}),
        (1, "bf16", {"overlap": True}, {NORM: 1, OVERFLOW: 1, OVERLAPPED: 1}),
        (1, "bf16", {"optimizer__name": "muon"}, {NORM: 1, OVERFLOW: 1}),
        (2, "bf16", {}, {NORM: 1, OVERFLOW: 1}),
        (2, "bf16", {"overlap": True}, {NORM: 1, OVERFLOW: 1, OVERLAPPED: MICRO_BATCHES}),
        (3, "fp32", {}, {NORM: 1, REDUCED: MICRO_BATCHES, GATHERED: 1}),
        (3, "bf16", {}, {NORM: 1, REDUCED: MICRO_BATCHES, GATHERED: 1}),
    ],
)
def test_a_step_waits_only_where_zero_decides_whether_to_apply_it(
    tmp_path, steps, stage, precision, settings, expected
):
    """Three micro-batches; every place besides the norm (and overflow) is DeepSpeed's, and is listed here by name.

    The first step, in which stage 3 learns the order of its layers, and those that are logged are left out.
    """
    settings = dict(settings)
    overlap = settings.pop("overlap", False)
    raw = json.dumps({"zero_optimization": {"overlap_comm": overlap}})
    engine = {"engine__zero_stage": stage, "engine__precision": precision, "engine__deepspeed": raw}
    assert train(parse(arguments(tmp_path, **engine, **settings))[0]) is Outcome.FINISHED
    for step in steps[2:STEPS]:
        assert step.places <= Counter(expected), dict(step.places)
        assert step.places[NORM] + step.places[OURS] == 1
        assert step.sums == 1
