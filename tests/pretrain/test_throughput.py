"""The stopwatch: rates are those of training, and waiting for data is a number of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.command_line import parse
from pretrain.monitoring.device_peaks import known_peak
from pretrain.monitoring.throughput import Throughput
from pretrain.trainer import train
from tests.pretrain.conftest import rows


class Clock:
    """Time that passes only when somebody says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pretrain.monitoring.throughput.time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_waiting_is_measured_between_steps_only(clock):
    def slow() -> Iterator[int]:
        for number in range(4):
            clock.now += 3.0
            yield number

    watch = Throughput(units_per_sample=10, flops_per_sample=2e12, peak_tflops=4.0, world_size=1)
    seen = []
    for number in watch.awaiting(slow()):
        watch.start()
        clock.now += 1.0  # the step
        watch.stop(samples=8)
        clock.now += 100.0  # a validation
        seen.append(number)
        if number == 1:
            assert watch.read("words") == {"words_per_second": 80.0, "tflops": 16.0, "mfu": 4.0, "data_wait": 0.75}
    assert seen == [0, 1, 2, 3]
    assert watch.read("words")["data_wait"] == 0.75
    assert watch.read("words")["data_wait"] == 0.0


def test_a_slow_source_shows_in_every_row(clock, tmp_path: Path, monkeypatch):
    """Samples take 2 seconds, micro-batches 4: a batch of 8 samples is 16 seconds of waiting and 8 of training."""
    monkeypatch.setattr("pretrain.monitor.peak_tflops", lambda *_: (1.0, "stated"))
    options = {
        "task": "tests.pretrain.toy.ToyTask", "output": tmp_path / "run", "steps": 4, "batch.size": 8,
        "batch.micro_size": 4, "engine.zero_stage": 0, "optimizer.lr": 0.01, "validation.every": 2,
        "telemetry.every": 2, "telemetry.tensorboard": "false", "telemetry.progress_bar": "false",
    }  # fmt: skip
    config, _ = parse([word for name, value in options.items() for word in (f"--{name}", str(value))])
    (source,), weights = config.task.training_sources()
    plain_sample, plain_loss = source.sample, config.task.loss

    def sample(index: int) -> Any:
        clock.now += 2.0
        return plain_sample(index)

    def loss(model: Any, batch: Any) -> Any:
        clock.now += 4.0
        return plain_loss(model, batch)

    source.sample = sample
    config.task.loss = loss  # type: ignore[method-assign]
    config.task.training_sources = lambda: ([source], weights)  # type: ignore[method-assign]
    train(config)
    assert [row["data_wait"] for row in rows(tmp_path / "run", "train")] == pytest.approx([2 / 3] * 2)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA H800 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_device_has_its_own_peak_and_not_that_of_one_with_a_like_name(name, peak):
    assert known_peak(name) == peak
