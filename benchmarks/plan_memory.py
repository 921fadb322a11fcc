"""Memory that a plan predicts beside memory that training takes: `python benchmarks/plan_memory.py`.

    deep     6M parameters, 1,024 tokens at a time: activations are most of it
    wide     24M parameters, 256 tokens at a time: weights, gradients and optimizer states are most of it
    words    17M parameters, nearly all of them in embedding and head: the loss in chunks

Each trains two steps in processes of its own, in float32 (`--precision`) on CPU ranks through our Engine. Measured is
the largest resident memory of a rank above what it held before the model. A tiny model has been trained before that,
because libraries allocate at first use.

The C library keeps what was freed and cannot always use it again, which is no part of a plan. Measurements therefore
run with MALLOC_MMAP_THRESHOLD_=65536, which gives freed tensors back at once; `--allocator default` shows what else a
run may hold.
"""

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from loss_memory import MIB, reset_peak, resident_peak
from measure import finish
from torch import nn

from pretrain.attention import built_with
from pretrain.config import BatchConfig, EngineConfig, OptimizerConfig, TrainConfig
from pretrain.engine import Engine
from pretrain.planning.options import PlanConfig
from pretrain.planning.plan import predict
from pretrain.planning.zero_memory import Moment
from pretrain.ranks.world import World, initialise_world
from pretrain.tasks import LanguageModelTask
from pretrain.tasks.base import seeded_build

Precision = Literal["fp32", "bf16"]
STEPS = 2
TARGET = 0.15
TINY = "tiny"
ADDITIONS = {"series_terms": 2, "shortcut_count": 1, "shortcut_reduction": 4, "tie_word_embeddings": False}
# Fields of the model, tokens of a sequence, sequences of a micro-batch.
SHAPES = {
    TINY: ({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 128, **ADDITIONS}, 32, 2),
    "deep": ({"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4,
              "vocab_size": 4096, **ADDITIONS}, 256, 4),
    "wide": ({"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 4, "num_attention_heads": 8,
              "vocab_size": 4096, **ADDITIONS}, 128, 2),
    "words": ({"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 2,
               "vocab_size": 65_536, **ADDITIONS}, 256, 8),
}  # fmt: skip


class WithoutShards(LanguageModelTask):
    """Language modelling on the batches of a plan."""

    def build_model(self, seed: int) -> nn.Module:
        self.model_config._attn_implementation = built_with(self.attention)
        return seeded_build(self.new_model, seed)


def configuration(
    name: str, folder: Path, stage: int, ranks: int, accumulation: int, precision: Precision
) -> TrainConfig:
    """A run of one shape, which is written into `folder`."""
    fields, length, micro_size = SHAPES[name]
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(fields))
    return TrainConfig(
        task=WithoutShards(str(path), ["unused"], sequence_length=length),
        output="",
        steps=STEPS,
        batch=BatchConfig(size=micro_size * ranks * accumulation, micro_size=micro_size),
        optimizer=OptimizerConfig(name="adamw", lr=1e-4),
        engine=EngineConfig(zero_stage=stage, precision=precision),  # type: ignore[arg-type]
    )


def train(config: TrainConfig, world: World) -> None:
    """A few steps, as the trainer makes them."""
    engine = Engine(config, config.task, world)
    batch = config.task.example_batch(config.batch.micro_size)
    for _ in range(config.steps * engine.accumulation):
        total = engine.wrapped(batch).total
        engine.backward(total / config.task.weight(batch))
        engine.update()
    engine.close()


def measure_here(name: str, stage: int, ranks: int, accumulation: int, precision: Precision) -> None:
    """Rank 0 prints the largest peak of any rank above what it held before the model, in bytes."""
    world = initialise_world()
    with tempfile.TemporaryDirectory() as folder:
        train(configuration(TINY, Path(folder), stage, ranks, accumulation, precision), world)
        config = configuration(name, Path(folder), stage, ranks, accumulation, precision)
    gc.collect()
    reset_peak()
    before = resident_peak()
    train(config, world)
    own = [float(resident_peak() - before) * (world.rank == rank) for rank in range(ranks)]
    peaks = world.sum(own)
    if world.is_main:
        print(json.dumps(max(peaks)))


def measure(name: str, stage: int, ranks: int, accumulation: int, precision: Precision, allocator: str) -> float:
    """`measure_here` in new processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    options = {"here": name, "stages": stage, "ranks": ranks, "accumulation": accumulation, "precision": precision}
    words = [f"--{option}={value}" for option, value in options.items()]
    command = [sys.executable, *launcher, __file__, *words]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if allocator == "returning" else {})
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def predict_moment(name: str, stage: int, ranks: int, accumulation: int, precision: Precision) -> Moment:
    """What the plan says of the same run."""
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(name, Path(folder), stage, ranks, accumulation, precision)
    return predict(config, PlanConfig(nodes=1, gpus=ranks, gpu="cpu"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=[name for name in SHAPES if name != TINY])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the weights")
    parser.add_argument("--allocator", choices=["returning", "default"], default="returning")
    parser.add_argument("--workers", type=int, default=2, help="measurements at a time; memory does not depend on it")
    parser.add_argument("--here", choices=list(SHAPES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure_here(options.here, options.stages[0], options.ranks[0], options.accumulation, options.precision)
        return
    common = [options.accumulation], [options.precision]
    runs = list(itertools.product(options.shapes, options.stages, options.ranks, *common))
    print(f"{'shape':8} {'stage':>5} {'ranks':>5} {'predicted':>12} {'measured':>12} {'error':>8}   largest moment")
    rows = {}
    with ThreadPoolExecutor(options.workers) as pool:
        peaks = pool.map(lambda run: measure(*run, options.allocator), runs)
        for (name, stage, ranks, accumulation, precision), peak in zip(runs, peaks, strict=True):
            moment = predict_moment(name, stage, ranks, accumulation, precision)
            predicted, measured, error = moment.total / MIB, peak / MIB, moment.total / peak - 1
            figures = f"{predicted:8,.0f} MiB {measured:8,.0f} MiB {error:+8.1%}"
            print(f"{name:8} {stage:5} {ranks:5} {figures}   {moment.name}", flush=True)
            row = {"predicted_mib": predicted, "measured_mib": measured, "error": error}
            rows[f"{name}, stage {stage}, {ranks} rank(s)"] = row
    worst = max(rows, key=lambda name: abs(rows[name]["error"]))
    outside = sum(abs(row["error"]) > TARGET for row in rows.values())
    print(f"\nlargest error {rows[worst]['error']:+.1%} ({worst}); {outside} of {len(rows)} beyond {TARGET:.0%}")
    setting = {name: getattr(options, name) for name in ("accumulation", "precision", "allocator")} | {"target": TARGET}
    finish("plan_memory", {"memory": rows}, **setting)


if __name__ == "__main__":
    main()
