"""Losses of given samples under a frozen model: forward passes only, divided among the ranks.

    numbers    [ n0 n1 n2 n3 | n4 n5 n6 n7 | n8 n9 ]     micro-batches, cut the same way on any number of ranks
    rank         0             1             0           which of them computes it

A micro-batch is computed whole on one rank, so what it yields does not depend on how many ranks there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from data_pipeline.source import Source
from pretrain.ranks.world import World
from pretrain.tasks.base import Task
from pretrain.transfers import on_device


class Scores(NamedTuple):
    """What a frozen model makes of samples; the same on every rank."""

    losses_N: np.ndarray
    """Summed loss of every sample, float64."""
    weights_N: np.ndarray
    """What each sum is to be divided by, float64 (labelled tokens for a language model)."""
    metrics: dict[str, float]
    """The task's own metrics: means over the micro-batches, each with its weight."""


@torch.no_grad()
def score_samples(
    module: nn.Module, task: Task, source: Source, numbers_N: np.ndarray, world: World, micro_batch: int
) -> Scores:
    """Summed loss and weight of every sample, the same on every rank. Collective.

    Args:
        module: maps a batch to a LossOutput: the engine, or a TaskModule; in evaluation mode.
        task: collates the samples.
        source: where they come from.
        numbers_N: their numbers, int64 [N].
        world: the ranks that share the work.
        micro_batch: samples of one forward pass.
    """
    sums_2N = np.zeros((2, len(numbers_N)))
    metrics: dict[str, float] = {}
    starts = range(0, len(numbers_N), micro_batch)
    for turn in range(0, len(starts), world.size):
        mine = turn + world.rank
        # ZeRO-3 needs the same number of forward passes on every rank; one without a micro-batch repeats the last.
        start = starts[min(mine, len(starts) - 1)]
        chosen = numbers_N[start : start + micro_batch].tolist()
        batch = task.collate([source.sample(number) for number in chosen])
        output = module(on_device(batch, world.device))
        if mine < len(starts):
            pair = torch.stack([output.per_sample.double(), output.per_sample_weight.double()])
            sums_2N[:, start : start + micro_batch] = pair.cpu().numpy()
        weight = float(output.per_sample_weight.sum()) if mine < len(starts) else 0.0
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + weight * float(value)
    names = sorted(metrics)
    sums = world.sum([*(metrics[name] for name in names), *sums_2N.reshape(-1).tolist()])
    losses_N, weights_N = np.array(sums[len(names) :]).reshape(2, -1)
    whole = max(weights_N.sum(), 1e-30)
    return Scores(losses_N, weights_N, {name: value / whole for name, value in zip(names, sums, strict=False)})
