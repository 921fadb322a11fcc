"""What ZeRO sends per rank and step, by formula and counted; where sending takes as long as computing.

Bytes that a rank sends (and receives) in a ring, P parameters, n ranks, r = (n - 1) / n, w bytes of a weight and g of a
gradient, K micro-batches of a step. An all-reduce is 2rP, an all-gather and a reduce-scatter are rP each, times the
bytes of an element (NVIDIA's nccl-tests, doc/PERFORMANCE.md, derives the same factors).

    stage    ZeRO paper (arXiv 1910.02054, sec. 7)    DeepSpeed 0.19 does
    0        2rPg                                     2rPg once a step                    engine.py: allreduce_gradients
    1        rP(g + w)                                rP(2g + w) once a step              see below
    2        rP(g + w)                                rP(2Kg + w)                         every micro-batch is reduced
    3        rP(g + 2w)                               KrP(g + 2w) less what is kept       gathered twice, reduced once

In bf16 w is 2 and g 4: gradients are summed over micro-batches and ranks in fp32 (pretrain/precision.py).

At stages 1 and 2 DeepSpeed averages whole buckets by an all-reduce of which a rank keeps its part
(`use_multi_rank_bucket_allreduce`, on by default: stage_1_and_2.py, average_tensor), where the paper counts a
reduce-scatter; the all-gather of updated weights comes on top. Stage 1 communicates at the last micro-batch only,
stages 2 and 3 at each. At stage 3 weights that are used again within max_reuse_distance elements (10^9) are not
gathered again for backward: half of these elements lie before the turn of the pass.

`count` trains a tiny model on two ranks and adds up what its collectives carry: the formulas are checked, not believed.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from plan_memory import TINY, Precision, configuration
from torch.utils._python_dispatch import TorchDispatchMode

from arch.pangu_pi.accounting import count_flops, count_parameters
from arch.pangu_pi.load_config import load_model_config
from pretrain.planning.accelerators import find_device
from pretrain.planning.zero_memory import STAGE_3_DEFAULTS

MODELS = {"1B Pro": "pangu_pi_1b_pro", "1.5B Pro": "pangu_pi_1_5b_pro"}
LENGTH = 2048
BATCH_TOKENS = 1024 * LENGTH
"""The global batch of configs/pangu_pi/runs/*_pro.yaml, the paper's."""
AT_ONCE = ("stage3_param_persistence_threshold", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size")
ALWAYS_CUT = {"zero_optimization": dict.fromkeys(AT_ONCE, 0)}
"""Settings of stage 3 under which even a tiny model is cut and gathered as a large one is: what lies in reach of a
prefetch is not released either, and would be all of it."""
COUNTED = (1, 3)
"""Micro-batches of a step whose communication is counted."""
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
"""By `engine.precision`."""
GRADIENT_BYTES = 4
"""`engine.gradient_precision` is fp32 unless a step has a single micro-batch on a single rank."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of 8 GPUs."""

    name: str
    gpu: str
    nvlink: float
    """Bytes per second of one GPU inside its node, one direction."""
    network: float
    """Bytes per second of a node to the others, one direction."""

    @property
    def bus(self) -> float:
        """Bytes per second that a ring over all GPUs carries: with one ring per adapter, all adapters work at once."""
        return min(self.nvlink, self.network)


# NVLink, both directions together: A100 600 GB/s (nvidia.com/en-us/data-center/nvlink), H100 900 GB/s
# (nvidia.com/en-us/technologies/hopper-architecture). An adapter of 200 Gb/s (HDR) or 400 Gb/s (NDR, ConnectX-7) for
# each GPU is an assumption about the cluster; the DGX H100 User Guide, table "Network Modules", shows one per GPU.
CLUSTERS = [
    Cluster("H100, 400 Gb/s per GPU", "h100-80", 450e9, 8 * 400e9 / 8),
    Cluster("A100, 200 Gb/s per GPU", "a100-80", 300e9, 8 * 200e9 / 8),
    Cluster("A100, 100 Gb/s per node", "a100-80", 300e9, 100e9 / 8),
    Cluster("A100, 25 Gb/s per node", "a100-80", 300e9, 25e9 / 8),
]


@dataclass(frozen=True)
class Shape:
    """A model as far as communication goes."""

    parameters: int
    flops: float
    """Of one token in training."""


def shapes(models: Path) -> dict[str, Shape]:
    """The models of the paper, by name."""
    found = {}
    for name, file in MODELS.items():
        config = load_model_config(str(models / f"{file}.yaml"))
        found[name] = Shape(count_parameters(config).total, count_flops(config, LENGTH).train_per_token)
    return found


def sent(
    stage: int,
    parameters: int,
    ranks: int,
    accumulation: int = 1,
    precision: str = "bf16",
    reuse: int = STAGE_3_DEFAULTS["stage3_max_reuse_distance"],
) -> float:
    """Bytes that one rank sends in one step, as DeepSpeed does it.

    Args:
        stage: of ZeRO.
        parameters: P.
        ranks: n.
        accumulation: K.
        precision: of the weights.
        reuse: stage 3's max_reuse_distance, in elements.
    """
    gathered = WEIGHT_BYTES[precision] * parameters
    reduced = 2 * GRADIENT_BYTES * parameters
    if stage == 0:
        whole = reduced
    elif stage == 1:
        whole = reduced + gathered
    elif stage == 2:
        whole = accumulation * reduced + gathered
    else:
        kept = min(parameters, reuse // 2) * WEIGHT_BYTES[precision]
        whole = accumulation * (2 * gathered - kept + reduced // 2)
    return whole * (ranks - 1) / ranks


def paper(stage: int, parameters: int, ranks: int, precision: str = "bf16") -> float:
    """The same in the ZeRO paper, for one micro-batch."""
    weights = {0: 0, 1: 1, 2: 1, 3: 2}[stage] * WEIGHT_BYTES[precision]
    gradients = (2 if stage == 0 else 1) * GRADIENT_BYTES
    return (weights + gradients) * parameters * (ranks - 1) / ranks


def tokens_per_second(shape: Shape, cluster: Cluster, mfu: float) -> float:
    """Of one GPU that computes all the time."""
    peak = find_device(cluster.gpu, 8, None, None).peak_tflops * 1e12  # type: ignore[arg-type]
    return peak * mfu / shape.flops


def meeting_point(stage: int, shape: Shape, cluster: Cluster, mfu: float, accumulation: int = 1) -> float:
    """Tokens of a rank in one step at which sending, at line rate and beside nothing, takes as long as computing."""
    seconds = sent(stage, shape.parameters, 4096, accumulation) / cluster.bus
    return seconds * tokens_per_second(shape, cluster, mfu)


class Counter(TorchDispatchMode):
    """Bytes that this rank sends in collectives, by operation, as a ring would."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.share = (ranks - 1) / ranks
        self.bytes: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        if name.startswith("c10d::") and "barrier" not in name:
            tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            if "allreduce" in name:
                moved = 2 * sum(tensor.nbytes for tensor in tensors)
            elif "_allgather_base" in name or "_reduce_scatter_base" in name:
                moved = max(tensor.nbytes for tensor in tensors)
            else:  # lists: the whole is on one side, its parts or one part on the other
                moved = max(sum(t.nbytes for t in tensors) - min(t.nbytes for t in tensors), 0)
            self.bytes[name.removeprefix("c10d::")] += moved * self.share
        return function(*args, **(kwargs or {}))


def count_here() -> None:
    """On two ranks: the bytes of the second step of every stage, precision and COUNTED, which rank 0 prints."""
    from pretrain.engine import Engine
    from pretrain.ranks.world import initialise_world

    world = initialise_world()
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        for stage, accumulation in itertools.product(range(4), COUNTED):
            with tempfile.TemporaryDirectory() as folder:
                config = configuration(TINY, Path(folder), stage, world.size, accumulation, precision)
            if stage == 3:
                config = replace(config, engine=replace(config.engine, deepspeed=ALWAYS_CUT))
            engine = Engine(config, config.task, world)
            batch = config.task.example_batch(config.batch.micro_size)

            def step(engine: Engine = engine, config: Any = config, batch: Any = batch) -> None:
                for _ in range(engine.accumulation):
                    engine.backward(engine.wrapped(batch).total / config.task.weight(batch))
                    engine.update()

            step()
            with Counter(world.size) as counter:
                step()
            if world.is_main:
                found = {
                    "stage": stage,
                    "accumulation": accumulation,
                    "precision": precision,
                    "parameters": engine.parameters,
                }
                print(json.dumps(found | {"bytes": counter.bytes}), flush=True)
            engine.close()


def count() -> list[dict[str, Any]]:
    """`count_here` in two new processes."""
    script = str(Path(__file__).with_name("scaling.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, script, "--here"], check=True, capture_output=True, text=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"stage"')]
