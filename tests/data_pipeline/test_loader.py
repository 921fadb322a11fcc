"""Loader: the same global batches at any world size, micro-batch and worker count, and as fast at step one million."""

import builtins
import cProfile
import multiprocessing
import os
import signal
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import OrderError, SourceError
from data_pipeline.loader import Loader, collate_tokens
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order
from data_pipeline.shards.token_source import TokenSource


def load(source, order: Order, world_size: int = 1, micro_batch_size: int = 4, **options) -> list[list]:
    """All ranks' micro-batches per step, in rank order."""
    options = {"start_step": 0, "stop_step": 3} | options
    ranks = [
        list(
            Loader(
                source,
                order,
                collate_tokens,
                rank=rank,
                world_size=world_size,
                micro_batch_size=micro_batch_size,
                **options,
            )
        )
        for rank in range(world_size)
    ]
    return [[batch for rank in step for batch in rank] for step in zip(*ranks, strict=True)]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    world_size=st.sampled_from([1, 2, 3, 4, 6]), accumulation=st.sampled_from([1, 2, 4]), start=st.integers(0, 10**9)
)
def test_any_cut_gives_the_same_global_batch(random_shards, world_size: int, accumulation: int, start: int) -> None:
    source = Mixture([TokenSource(random_shards, 8), TokenSource(random_shards, 8)], [0.25, 0.75])
    order = Order(source.sizes, 48, seed=3, weights=source.weights)
    micro = 48 // world_size // accumulation
    steps = load(source, order, world_size, micro, start_step=start, stop_step=start + 2)
    assert len(steps) == 2
    for step, batches in enumerate(steps, start):
        assert len(batches) == world_size * accumulation
        assert torch.cat([batch["sample_ids"] for batch in batches]).tolist() == order.batch(step).tolist()
        for batch in batches:
            assert batch["input_ids"].shape == (micro, 8) and batch["input_ids"].dtype == torch.int64
            for row, index in enumerate(batch["sample_ids"].tolist()):
                sample = source.sample(index)
                assert all(np.array_equal(batch[name][row].numpy(), sample[name]) for name in sample)


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_of_several_sizes_are_cut_alike(random_shards: Path, world_size: int) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 8, seed=3)
    order.restart(8, [(1, 4), (2, 12), (4, 6)])
    steps = load(source, order, world_size, 2, stop_step=4)
    for step, (batches, size) in enumerate(zip(steps, (8, 4, 12, 12), strict=True)):
        assert [len(batch["sample_ids"]) for batch in batches] == [2] * (size // 2)
        assert torch.cat([batch["sample_ids"] for batch in batches]).tolist() == order.batch(step).tolist()
    if world_size == 2:
        with pytest.raises(OrderError, match="batch_size 6 is not a multiple"):
            load(source, order, world_size, 2, stop_step=5)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_change_nothing(random_shards: Path, start_method: str) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 8, seed=0)
    alone = load(source, order, stop_step=5)
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(start_method, force=True)
    try:
        helped = load(source, order, stop_step=5, num_workers=2)
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    for left, right in zip(alone, helped, strict=True):
        for one, other in zip(left, right, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


class FailsLater:
    """A source whose sample 20 cannot be read."""

    def __init__(self, source: TokenSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> dict:
        if index == 20:
            raise SourceError("sample 20 is broken")
        return self.source.sample(index)


def test_an_error_in_a_worker_reaches_the_caller(random_shards: Path) -> None:
    source = FailsLater(TokenSource(random_shards, 8))
    order = Order([len(source)], 8, seed=0)
    bad = next(step for step in range(1000) if 20 in order.batch(step))
    first = max(0, bad - 2)
    loader = Loader(source, order, collate_tokens, rank=0, world_size=1, micro_batch_size=8, start_step=first,
                    stop_step=bad + 3, num_workers=2)  # fmt: skip
    seen = []
    with pytest.raises(SourceError, match="sample 20 is broken"):
        seen.extend(int(batch["step"]) for [batch] in loader)
    assert seen == list(range(first, bad))


def test_a_worker_that_dies_is_reported(random_shards: Path) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 8, seed=0)
    loader = Loader(source, order, collate_tokens, rank=0, world_size=1, micro_batch_size=8, start_step=0,
                    stop_step=100_000, num_workers=1)  # fmt: skip
    with pytest.raises(RuntimeError, match=r"worker .* (killed|exited)"):
        for step, _ in enumerate(loader):
            if step == 1:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def test_leaving_early_ends_the_workers(random_shards: Path) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 8, seed=0)
    steps = iter(Loader(source, order, collate_tokens, rank=0, world_size=1, micro_batch_size=8, start_step=0,
                        stop_step=100_000, num_workers=2))  # fmt: skip
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    steps.close()
    del steps
    assert not multiprocessing.active_children()


def test_workers_outlive_what_tells_their_trainer_to_stop(random_shards: Path) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 8, seed=0)
    steps = iter(Loader(source, order, collate_tokens, rank=0, world_size=1, micro_batch_size=8, start_step=0,
                        stop_step=100_000, num_workers=2))  # fmt: skip
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    for name in ("TERM", "INT", "TERM"):  # from another process, as a launcher sends them; the first hit new workers
        subprocess.run(["kill", f"-{name}", *workers], check=True)
        assert [int(next(steps)[0]["step"]) for _ in range(5)]
    assert sorted(str(worker.pid) for worker in multiprocessing.active_children()) == sorted(workers)
    steps.close()


def _read_and_end(shards: Path, end: str, told: Connection) -> None:
    source = TokenSource(shards, 8)
    order = Order([len(source)], 8, seed=0)
    steps = iter(Loader(source, order, collate_tokens, rank=0, world_size=1, micro_batch_size=8, start_step=0,
                        stop_step=100_000, num_workers=2))  # fmt: skip
    next(steps)
    told.send([worker.pid for worker in multiprocessing.active_children()])
    if end == "waits":
        signal.pause()
    elif end == "leaves at once":
        os._exit(1)
    elif end == "still refers to its loader":
        builtins.kept = steps  # type: ignore[attr-defined]
        raise SystemExit(1)
    elif end == "terminates them":
        for worker in multiprocessing.active_children():
            worker.terminate()
            worker.join(20)
            assert worker.exitcode == 0


@pytest.mark.parametrize("end", ["waits", "leaves at once", "still refers to its loader", "terminates them"])
def test_no_worker_outlives_its_trainer(random_shards: Path, end: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    trainer = multiprocessing.get_context("fork").Process(target=_read_and_end, args=(random_shards, end, theirs))
    trainer.start()
    workers = [psutil.Process(pid) for pid in ours.recv()]
    if end == "waits":
        trainer.kill()
    trainer.join(30)
    assert trainer.exitcode == {"waits": -signal.SIGKILL, "terminates them": 0}.get(end, 1)
    _, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        worker.kill()
    assert not alive


def test_batches_do_not_share_memory_with_the_shards(random_shards: Path) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 4, seed=0)
    [[first]] = load(source, order, stop_step=1)
    first["input_ids"].zero_()
    first["sample_ids"].zero_()
    [[again]] = load(source, order, stop_step=1)
    assert again["input_ids"].any() and again["sample_ids"].any()


def test_resuming_at_step_one_million_does_what_the_first_step_does(random_shards: Path) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 64, seed=0)
    calls = []
    for first in (0, 1, 1_000_000):  # what is made once is made by the first
        profile = cProfile.Profile()
        [step] = profile.runcall(load, source, order, micro_batch_size=16, start_step=first, stop_step=first + 1)
        calls.append(sum(entry.callcount for entry in profile.getstats()))
        assert torch.cat([batch["sample_ids"] for batch in step]).tolist() == order.batch(first).tolist()
    assert 64 < calls[2] < 1.1 * calls[1]


def test_impossible_cuts_are_refused(random_shards: Path) -> None:
    source = TokenSource(random_shards, 8)
    order = Order([len(source)], 12, seed=0)
    with pytest.raises(OrderError, match=r"batch_size 12 is not a multiple of world_size 2 x micro_batch_size 4 = 8"):
        load(source, order, world_size=2)
    with pytest.raises(OrderError, match="batch_size 12 is not a multiple"):
        load(source, order, world_size=4, micro_batch_size=12)
    with pytest.raises(OrderError, match="0 <= start_step <= stop_step, found 5 and 2"):
        load(source, order, start_step=5, stop_step=2)
    with pytest.raises(OrderError, match="the order numbers 7 samples, but the source has"):
        load(source, Order([7], 4, seed=0))
    with pytest.raises(OrderError, match=r"rank: expected 0 to 1 \(world_size 2\), found 2"):
        Loader(source, order, collate_tokens, rank=2, world_size=2, micro_batch_size=1, start_step=0, stop_step=1)
