"""Tokens per second of a training step, ours beside transformers': `python benchmarks/train_step.py`.

    transformers   LlamaForCausalLM and its own loss in a plain loop, eager and under torch.compile
    ours, LLaMA    the same shape in our class: our chunked head and loss; compiled layer by layer
    ours, PanGu-pi series activation (n=2) and one augmented shortcut at equal depth

All on the same random tokens, float32 on a CPU and bfloat16 on a GPU, with fused AdamW and without a key/value cache.
The matrix product that MFU is measured against takes its turn with them, and ratios are taken within a turn.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from measure import finish, table, take_turns
from torch import nn
from transformers import LlamaForCausalLM

from arch import PanguPiConfig, PanguPiForCausalLM, count_flops, load_model_config
from arch.export import llama_config
from pretrain.compilation import blocks_of, compile_blocks
from pretrain.loss import linear_cross_entropy

Step = Callable[[], None]
MODELS = Path(__file__).resolve().parents[1] / "configs" / "models"
SMALL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
PLAIN = {"series_terms": 1, "shortcut_count": 0}
PEAK = "matrix product"
# What the ratios say: (numerator, denominator, smallest value that is wanted).
TARGETS = [
    ("ours, LLaMA, compiled", "transformers, eager", 1.25),
    ("ours, LLaMA, compiled", "transformers, compiled", 1.0),
    ("ours, PanGu-pi, compiled", "ours, LLaMA, compiled", 0.95),
    ("ours, PanGu-pi, eager", "ours, LLaMA, eager", 0.95),
]


def with_optimizer(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """One step of fused AdamW on `loss`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def theirs(config: PanguPiConfig, ids_BS: torch.Tensor, dtype: torch.dtype, compiled: bool) -> Step:
    """transformers' LLaMA in a plain loop."""
    model = LlamaForCausalLM(llama_config(config)).to(ids_BS.device, dtype).train()
    forward = torch.compile(model) if compiled else model
    return with_optimizer(model, lambda: forward(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss)


def ours(config: PanguPiConfig, ids_BS: torch.Tensor, dtype: torch.dtype, compiled: bool) -> Step:
    """Our model and loss, as the trainer calls them."""
    model = PanguPiForCausalLM(config).to(ids_BS.device, dtype).train()
    if compiled:
        compile_blocks(blocks_of(model))
    labels_BS = ids_BS.roll(-1, dims=1)
    labels_BS[:, -1] = -100
    positions_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device).expand_as(ids_BS)

    def loss() -> torch.Tensor:
        hidden_BSD = model.model(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).last_hidden_state
        total, _ = linear_cross_entropy(hidden_BSD, model.lm_head.weight, labels_BS)
        return total / (labels_BS != -100).sum()

    return with_optimizer(model, loss)


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


def measure(name: str, shape: PanguPiConfig, arguments: argparse.Namespace) -> dict:
    """All contenders at one shape: tokens per second, MFU and the ratios that have targets."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    ids_BS = torch.randint(shape.vocab_size, (arguments.batch_size, arguments.sequence_length), device=device)
    fields = shape.to_dict()
    llama, pangu = (
        PanguPiConfig(**{**fields, **PLAIN}),
        PanguPiConfig(**{**fields, "series_terms": 2, "shortcut_count": 1}),
    )
    steps = {
        "ours, LLaMA, compiled": (llama, ours(llama, ids_BS, dtype, compiled=True)),
        "ours, LLaMA, eager": (llama, ours(llama, ids_BS, dtype, compiled=False)),
        "ours, PanGu-pi, compiled": (pangu, ours(pangu, ids_BS, dtype, compiled=True)),
        "ours, PanGu-pi, eager": (pangu, ours(pangu, ids_BS, dtype, compiled=False)),
        "transformers, eager": (llama, theirs(llama, ids_BS, dtype, compiled=False)),
        "transformers, compiled": (llama, theirs(llama, ids_BS, dtype, compiled=True)),
    }
    peak = product(device, dtype)
    for _, step in steps.values():
        step()  # compiles
    figures = take_turns(
        {contender: timed(step, ids_BS.numel(), device) for contender, (_, step) in steps.items()}
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
    title = f"{name}: batch {arguments.batch_size} x {arguments.sequence_length} on {device.type}, {dtype}"
    result = {
        "tokens_per_second": table(f"Training step, {title}", "tokens/s", figures, "ours, LLaMA, compiled"),
        "mfu": table(
            f"MFU against {peak_flops / 1e9:,.0f} GFLOP/s measured",
            "% of the matrix product",
            utilisation,
            "ours, LLaMA, compiled",
        ),
    }
    print("\nRatios within a turn: median (lowest to highest), and the target")
    result["ratios"] = {}
    for over, under, target in TARGETS:
        ratios = [a / b for a, b in zip(figures[over], figures[under], strict=True)]
        middle = median(ratios)
        print(f"{over} / {under}: {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), wanted >= {target}")
        result["ratios"][f"{over} / {under}"] = {"median": middle, "lowest": min(ratios), "highest": max(ratios)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=["small", "pangu_pi_50m"], help="small, or a file of configs/models"
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
        shape = load_model_config(SMALL if name == "small" else MODELS / f"{name}.yaml")
        tables[name] = measure(name, shape, arguments)
    finish("train_step", tables, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
