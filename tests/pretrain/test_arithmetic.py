"""engine.deterministic and engine.tf32: what is set, and that no task needs an operator that CUDA would refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.arithmetic import DETERMINISTIC_ENVIRONMENT, describe_arithmetic, set_arithmetic
from pretrain.command_line import parse
from pretrain.config import EngineConfig
from tests.pretrain.conftest import rows
from tests.pretrain.task_cases import CASES, Materials, arguments
from tests.pretrain.test_guards import run, toy

REFUSED_ON_CUDA = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d",
    "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward",
    "nll_loss2d_backward", "_ctc_loss_backward", "_embedding_bag_backward", "put_", "put", "histc", "bincount",
    "median", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "scatter_reduce", "scatter_reduce_",
}  # fmt: skip
"""By torch.use_deterministic_algorithms' own list; of bincount only that with weights."""


class Recorder(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        weighed = args[1] if len(args) > 1 else (kwargs or {}).get("weights")
        if name != "bincount" or weighed is not None:
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in DETERMINISTIC_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    set_arithmetic(EngineConfig(deterministic=True))
    yield
    set_arithmetic(EngineConfig())


@pytest.mark.parametrize("case", CASES)
def test_no_task_calls_what_cuda_has_no_deterministic_algorithm_for(case, corpus, tmp_path, deterministic):
    task = parse(arguments(case, Materials(tmp_path, corpus), tmp_path / "run"))[0].task
    sources, _ = task.training_sources()
    samples = [sources[0].sample(index) | {"sample_ids": index, "step": 0} for index in range(4)]
    losses = []
    for _ in range(2):
        model = task.build_model(1)
        torch.manual_seed(0)
        with Recorder() as recorder:
            output = task.loss(model, task.collate(samples))
            output.total.backward()
        losses.append([output.total, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert "detach" in recorder.seen and any(name.endswith("backward") for name in recorder.seen)
    refused = recorder.seen & REFUSED_ON_CUDA
    assert not refused
    assert len(losses[0]) > 3 and all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


def test_the_recorder_sees_what_it_is_for():
    image_BCHW = torch.ones(1, 1, 2, 2, requires_grad=True)
    with Recorder() as recorder:
        torch.nn.functional.interpolate(image_BCHW, scale_factor=2, mode="bilinear").sum().backward()
        torch.bincount(torch.tensor([1, 2]))
    assert recorder.seen & REFUSED_ON_CUDA == {"upsample_bilinear2d_backward"}


def test_everything_that_decides_the_order_is_set(deterministic):
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert {name: os.environ[name] for name in DETERMINISTIC_ENVIRONMENT} == DETERMINISTIC_ENVIRONMENT
    assert all(text in describe_arithmetic("cuda") for text in ("deterministic algorithms only", "NCCL_ALGO=Ring"))
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.ones(3).put_(torch.tensor([0]), torch.ones(1))


def test_the_environment_wins_over_the_default(monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    set_arithmetic(EngineConfig(deterministic=True))
    try:
        assert os.environ["NCCL_ALGO"] == "Tree"
    finally:
        set_arithmetic(EngineConfig())


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_stated(tf32):
    set_arithmetic(EngineConfig(tf32=tf32))
    try:
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
        assert ("TF32" in describe_arithmetic("cuda")) == tf32
    finally:
        set_arithmetic(EngineConfig())


def test_a_deterministic_run_says_so(tmp_path, deterministic):
    run([*toy(tmp_path, steps=2), "--engine.deterministic", "true"])
    assert "deterministic algorithms only" in (tmp_path / "audit.json").read_text()
    assert len(rows(tmp_path, "train")) == 2
