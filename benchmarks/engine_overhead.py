"""What the DeepSpeed engine costs on one rank: `python benchmarks/engine_overhead.py`.

    plain     forward, backward, clip, fused AdamW: a torch loop
    zero_0    the same through our Engine without ZeRO
    zero_1    ... with ZeRO-1, which flattens parameters and gradients

Same model, same loss, same data, taking turns. --profile adds the ten operators with the most time of zero_1.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measure import finish, table, take_turns

from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.load_config import load_model_config
from data_pipeline.document_bounds import document_bounds
from data_pipeline.loader import Batch
from pretrain.config import BatchConfig, EngineConfig, OptimizerConfig, TrainConfig
from pretrain.engine import Engine
from pretrain.optimizers.optimizer import build_optimizer, parameter_groups
from pretrain.ranks.world import initialise_world
from pretrain.tasks import LanguageModelTask
from pretrain.tasks.base import seeded_build


class RandomTokenTask(LanguageModelTask):
    """The language-model task on made-up tokens: no shards, no tokenizer."""

    def __init__(
        self, shape: str | Path | Mapping[str, Any], sequence_length: int, overrides: Mapping[str, Any] | None = None
    ) -> None:
        self.model_config = load_model_config(shape, overrides)
        self.sequence_length, self.loss_chunk_elements, self.teacher = sequence_length, None, None

    def build_model(self, seed: int) -> torch.nn.Module:
        return seeded_build(lambda: PanguPiForCausalLM(self.model_config), seed)

    def batch(self, size: int) -> Batch:
        """One batch of random tokens, one document per row."""
        ids = torch.randint(0, self.model_config.vocab_size, (size, self.sequence_length))
        positions = torch.arange(self.sequence_length).expand_as(ids)
        return {
            "input_ids": ids,
            "labels": ids.roll(-1, 1),
            "position_ids": positions,
            **document_bounds(positions),
        }


def plain_step(task: RandomTokenTask, config: TrainConfig, batch: Batch) -> Callable[[], None]:
    """A training step as one would write it by hand."""
    model = task.build_model(0)
    optimizer = build_optimizer(
        parameter_groups(model, task.undecayed_parameters(model), config.optimizer), config.optimizer, 1e-4
    )

    def step() -> None:
        output = task.loss(model, batch)
        (output.total / task.weight(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def engine_step(engine: Engine, batch: Batch) -> Callable[[], None]:
    """The trainer's own step."""

    def step() -> None:
        output = engine.wrapped(batch)
        engine.backward(output.total / engine.task.weight(batch))
        assert engine.update(), "the step was skipped"

    return step


def seconds(step: Callable[[], None], count: int) -> float:
    """Seconds per step, mean of `count`."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - started) / count


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="configs/pangu_pi/models/pangu_pi_4m.yaml")
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps per repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    world = initialise_world()
    task = RandomTokenTask(options.model, options.sequence_length)
    batch = task.batch(options.batch_size)

    def config(stage: int) -> TrainConfig:
        sizes = BatchConfig(size=options.batch_size, micro_size=options.batch_size)
        optimizer, engine = OptimizerConfig(name="adamw", lr=1e-4), EngineConfig(zero_stage=stage)  # type: ignore[arg-type]
        return TrainConfig(task=task, output="", steps=1, batch=sizes, optimizer=optimizer, engine=engine)

    steps = {"plain": plain_step(task, config(0), batch)}
    steps |= {f"zero_{stage}": engine_step(Engine(config(stage), task, world), batch) for stage in (0, 1)}
    figures = take_turns(
        {name: lambda step=step: seconds(step, options.steps) for name, step in steps.items()}, options.repeats
    )
    tables = {"step": table(f"Training step of {options.model}", "s", figures, "zero_1")}
    if options.profile:
        with torch.profiler.profile() as profile:
            steps["zero_1"]()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=10))
    finish("engine_overhead", tables, model=options.model, batch_size=options.batch_size)


if __name__ == "__main__":
    main()
