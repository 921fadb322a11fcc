"""Tokens per second of a training step, ours beside transformers': `python benchmarks/train_step.py`.

    transformers   LlamaForCausalLM and its own loss in a plain loop, eager and under torch.compile
    ours, LLaMA    the same shape, and so the same parameters, as the trainer has it: the task's loss, with whatever
                   attention it chooses; compiled layer by layer
    ours, PanGu-pi series activation (n=2) and one augmented shortcut at equal depth

All on the same random tokens, rows of one document, with clipping and fused AdamW and without a key/value cache. Types:
float32 on a CPU and bfloat16 on a GPU; ours also in bfloat16 where the processor multiplies it, with float32 masters as
in every run. `engine.precision` and `engine.compile` of a run are auto, which measures and takes the fastest: that is
what a user gets, and what is held against transformers in eager mode. The matrix product that MFU is measured against
takes its turn with them, and ratios are taken within a turn.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from engine_overhead import RandomTokenTask
from measure import finish, table, take_turns
from transformers import LlamaForCausalLM

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.accounting import count_flops
from arch.pangu_pi.export import llama_config
from data_pipeline.loader import Batch
from pretrain.config import OptimizerConfig
from pretrain.optimizers.master_weights import MasterWeights, round_model
from pretrain.optimizers.optimizer import build_optimizer, parameter_groups
from pretrain.speed_choice import has_bf16

Step = Callable[[], None]
MODELS = Path(__file__).resolve().parents[1] / "configs" / "pangu_pi" / "models"
SMALL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
PLAIN, PANGU = {"series_terms": 1, "shortcut_count": 0}, {"series_terms": 2, "shortcut_count": 1}
PEAK = "matrix product"
CHOSEN = "ours, LLaMA, the fastest"
ADAMW = OptimizerConfig(name="adamw")


def has_amx() -> bool:
    """Whether this processor has AMX, on which bf16 is several times as fast as float32."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def targets(precision: str) -> list[tuple[str, str, float]]:
    """What the ratios say: (numerator, denominator, smallest value that is wanted); `precision` is transformers'."""
    ours, pangu = f"ours, LLaMA, {precision}", f"ours, PanGu-pi, {precision}"
    return [
        (CHOSEN, "transformers, eager", 2.0 if has_amx() else 1.5),
        (f"{ours}, compiled", "transformers, compiled", 1.0),
        (f"{pangu}, compiled", f"{ours}, compiled", 0.95),
        (f"{pangu}, eager", f"{ours}, eager", 0.95),
    ]


def with_optimizer(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Step:
    """One step on `loss`, its gradient clipped."""
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(updated, ADAMW.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def theirs(config: PanguPiConfig, batch: Batch, dtype: torch.dtype, compiled: bool) -> Step:
    """transformers' LLaMA in a plain loop."""
    ids_BS = batch["input_ids"]
    model = LlamaForCausalLM(llama_config(config)).to(ids_BS.device, dtype).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return with_optimizer(optimizer, lambda: forward(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss)


def ours(task: RandomTokenTask, batch: Batch, dtype: torch.dtype, compiled: bool) -> Step:
    """A step as the trainer takes it on one rank without ZeRO."""
    device = batch["input_ids"].device
    model = task.build_model(0).to(device).train()
    task.prepare_model(model, activation_checkpointing=False, compile_model=compiled)
    groups = parameter_groups(model, task.undecayed_parameters(model), ADAMW)
    build = partial(build_optimizer, config=ADAMW, lr=1e-4)
    if dtype == torch.bfloat16:
        round_model(model, device)
    optimizer = build(groups) if dtype == torch.float32 else MasterWeights(groups, build)
    return with_optimizer(optimizer, lambda: task.loss(model, batch).total / task.weight(batch))


def product(device: torch.device, dtype: torch.dtype) -> Step:
    """Twenty square matrix products, 1024 wide on a CPU and 8192 on a GPU."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def step() -> None:
        for _ in range(20):
            torch.mm(left, right)

    step.flops = 20 * 2 * size**3  # type: ignore[attr-defined]
    return step


def timed(step: Step, work: float, device: torch.device) -> Callable[[], float]:
    """Work per second of one call."""

    def run() -> float:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return work / (time.perf_counter() - start)

    return run


def measure(name: str, shape: Mapping[str, Any] | Path, arguments: argparse.Namespace) -> dict:
    """All contenders at one shape: tokens per second, MFU and the ratios that have targets."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device.type == "cuda" or not has_bf16():
        del types["fp32" if device.type == "cuda" else "bf16"]
    usual, dtype = next(iter(types.items()))
    torch.manual_seed(0)
    tasks = {
        kind: RandomTokenTask(shape, arguments.sequence_length, fields)
        for kind, fields in (("LLaMA", PLAIN), ("PanGu-pi", PANGU))
    }
    llama = tasks["LLaMA"].model_config
    batch = {key: tensor.to(device) for key, tensor in tasks["LLaMA"].batch(arguments.batch_size).items()}
    tokens = batch["input_ids"].numel()
    hows = {"eager": False, "compiled": True}
    steps = {
        f"ours, {kind}, {precision}, {how}": (task.model_config, ours(task, batch, own, compiled))
        for precision, own in types.items()
        for kind, task in tasks.items()
        for how, compiled in hows.items()
    }
    steps |= {f"transformers, {how}": (llama, theirs(llama, batch, dtype, compiled)) for how, compiled in hows.items()}
    peak = product(device, dtype)
    for _, step in steps.values():
        step()  # compiles
    figures = take_turns(
        {contender: timed(step, tokens, device) for contender, (_, step) in steps.items()}
        | {PEAK: timed(peak, peak.flops, device)},  # type: ignore[attr-defined]
        arguments.repeats,
    )
    peak_flops = max(figures.pop(PEAK))
    utilisation = {
        contender: [
            100 * rate * count_flops(steps[contender][0], arguments.sequence_length).train_per_token / peak_flops
            for rate in rates
        ]
        for contender, rates in figures.items()
    }
    fastest = max((contender for contender in figures if "ours, LLaMA" in contender), key=lambda c: median(figures[c]))
    title = f"{name}: batch {arguments.batch_size} x {arguments.sequence_length} on {device.type}"
    result = {
        "tokens_per_second": table(f"Training step, {title}", "tokens/s", figures, fastest),
        "mfu": table(
            f"MFU against {peak_flops / 1e9:,.0f} GFLOP/s measured",
            "% of the matrix product",
            utilisation,
            fastest,
        ),
    }
    print(f"\n{CHOSEN}: {fastest}\nRatios within a turn: median (lowest to highest), and the target")
    result["ratios"], figures[CHOSEN] = {}, figures[fastest]
    for over, under, target in targets(usual):
        ratios = [a / b for a, b in zip(figures[over], figures[under], strict=True)]
        middle = median(ratios)
        print(f"{over} / {under}: {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), wanted >= {target}")
        result["ratios"][f"{over} / {under}"] = {
            "median": middle, "lowest": min(ratios), "highest": max(ratios), "target": target
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=["small", "pangu_pi_50m"], help="small, or a file of configs/pangu_pi/models"
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; by default all")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tables = {}
    for name in arguments.shapes:
        torch.compiler.reset()
        tables[name] = measure(name, SMALL if name == "small" else MODELS / f"{name}.yaml", arguments)
    finish("train_step", tables, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
