"""`Loader`: from the order of samples to this rank's micro-batches, step by step.

    order.batch(t)   [ s0 s1 s2 s3 | s4 s5 s6 s7 ]       global batch t, the same on every rank
                       rank 0        rank 1
    yields on rank 0 [ {s0 s1}, {s2 s3} ]                one Batch per micro-step (gradient accumulation)

A step is the unit of work: worker processes each build whole steps, and PyTorch's DataLoader brings them back in order.
Starting at step one million means starting to count there. Taking a step over from a worker costs milliseconds, since
the busy worker has to hand out its shared memory; a thread does that while the step before is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_pipeline.document_bounds import document_bounds
from data_pipeline.errors import OrderError
from data_pipeline.order import Order
from data_pipeline.source import Sample, Source
from data_pipeline.worker_signals import live_with_parent, stop_signals_held

Batch: TypeAlias = dict[str, torch.Tensor]
Collate: TypeAlias = Callable[[list[Sample]], Batch]


def collate_tokens(samples: Sequence[Sample]) -> Batch:
    """Stack samples along a new first axis: {name: [S]} times B -> {name: int64 [B, S]}.

    Samples with positions also get the bounds of their documents (`document_bounds`), which are those of this batch:
    rows cannot be taken out of it one by one.
    """
    batch = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
    return batch | document_bounds(batch["position_ids"]) if "position_ids" in batch else batch


class Loader:
    """Iterates over the steps [start_step, stop_step) and yields, for each, the list of this rank's micro-batches.

    Args:
        source: where samples come from.
        order: which samples each step takes.
        collate: list of samples -> Batch.
        rank: this process among `world_size`; takes the rank-th contiguous part of each global batch.
        world_size: number of data-parallel processes.
        micro_batch_size: samples per micro-batch.
        start_step: first step, 0 or the step to resume at.
        stop_step: one past the last step.
        num_workers: processes that build batches; 0 builds them in this one.
        prefetch: steps that each worker builds ahead.
        pin_memory: return batches in page-locked memory, for asynchronous copies to a GPU.

    Each Batch holds, besides what `collate` returns, `sample_ids`: int64 [B], the samples' numbers in the source, and
    `step`: int64 [], the step that they belong to, for what a task draws once per step.

    Raises:
        OrderError: a global batch is not a whole number of micro-batches on every rank.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        collate: Collate,
        *,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        start_step: int,
        stop_step: int,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ):
        if not 0 <= rank < world_size:
            raise OrderError(f"rank: expected 0 to {world_size - 1} (world_size {world_size}), found {rank}")
        if not 0 <= start_step <= stop_step:
            raise OrderError(f"steps: expected 0 <= start_step <= stop_step, found {start_step} and {stop_step}")
        for first, size in order.batch_sizes_from(start_step):
            if first < max(stop_step, start_step + 1) and size % (world_size * micro_batch_size):
                raise OrderError(
                    f"batch_size {size} is not a multiple of world_size {world_size} x micro_batch_size"
                    f" {micro_batch_size} = {world_size * micro_batch_size}; change one of the three"
                )
        if len(source) != sum(order.sizes):
            raise OrderError(f"the order numbers {sum(order.sizes)} samples, but the source has {len(source)}")
        self.steps = range(start_step, stop_step)
        self._loader: DataLoader[list[Batch]] = DataLoader(
            _Steps(source, order, collate, rank, world_size, micro_batch_size),
            batch_size=None,
            sampler=self.steps,
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers else None,
            pin_memory=pin_memory,
            worker_init_fn=live_with_parent,
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Batch]]:
        with stop_signals_held():
            steps = iter(self._loader)
        return _one_ahead(steps) if self._loader.num_workers else steps


def _one_ahead(steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """The same steps; a thread waits for the next one while the caller works on this one."""
    thread, idle = ThreadPoolExecutor(1, thread_name_prefix="loader"), True
    try:
        coming = thread.submit(next, steps, None)
        while (step := coming.result()) is not None:
            coming = thread.submit(next, steps, None)
            yield step
    except Exception:
        idle = False  # it may be waiting for a worker that is dead
        raise
    finally:
        thread.shutdown(wait=idle)


class _Steps(Dataset[list[Batch]]):
    """Map-style view for the DataLoader: step number -> one rank's micro-batches."""

    def __init__(
        self,
        source: Source,
        order: Order,
        collate: Collate,
        rank: int,
        world_size: int,
        micro_batch_size: int,
    ):
        self.source = source
        self.order = order
        self.collate = collate
        self.rank, self.world_size = rank, world_size
        self.micro_batch_size = micro_batch_size

    def __getitem__(self, step: int) -> list[Batch]:
        sample_ids_RAB = self.order.batch(step).reshape(self.world_size, -1, self.micro_batch_size)
        return [self._batch(sample_ids_B, step) for sample_ids_B in sample_ids_RAB[self.rank]]

    def _batch(self, sample_ids_B: np.ndarray, step: int) -> Batch:
        batch = self.collate([self.source.sample(index) for index in sample_ids_B.tolist()])
        return {**batch, "sample_ids": torch.from_numpy(sample_ids_B.copy()), "step": torch.tensor(step)}
