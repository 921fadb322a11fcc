"""What Muon adds to a step: `python benchmarks/muon_step.py`.

    forward, backward    the model on the tokens of one of the ranks
    Muon                 ours: one rank's share of the matrices, AdamW on its share of the rest, as under ZeRO
    Muon, alone          ours: all of them, as on one rank
    DeepSpeed            MuonWithAuxAdam, one matrix after the other, eager: the first half of the matrices, as ZeRO-1
                         deals them out, or all of them, as every rank does without ZeRO
    AdamW                fused, one rank's share of everything

They take turns in one process, and ratios are taken within a turn. What ranks send each other is counted, not timed:
matrices that are not orthogonalised where they lie. FLOPs are those of matrix products, by arithmetic on the shapes;
those at 1B are for the batch of configs/pangu_pi/runs/1b_pro.yaml.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import finish, table, take_turns
from torch import Tensor, nn

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.pangu_pi.accounting import count_flops
from arch.pangu_pi.load_config import load_model_config
from pretrain.config import OptimizerConfig
from pretrain.losses.chunked_cross_entropy import linear_cross_entropy
from pretrain.optimizers.muon import Part, choose_owners
from pretrain.optimizers.newton_schulz import orthogonalisation_flops, product_type
from pretrain.optimizers.optimizer import ParameterGroup, build_optimizer, parameter_groups

MODELS = Path(__file__).resolve().parents[1] / "configs" / "pangu_pi" / "models"
LARGE, LARGE_TOKENS, LARGE_LENGTH = "pangu_pi_1b", 1024 * 2048, 2048
STEP, OURS = "forward, backward", "Muon"
WANTED = 5.0
"""Per cent of a step."""


def groups_of(config: PanguPiConfig, device: str) -> tuple[nn.Module, list[ParameterGroup]]:
    """A model and the groups of its parameters."""
    with torch.device(device):
        model = PanguPiForCausalLM(config)
    return model, parameter_groups(model, model.no_weight_decay(), OptimizerConfig(name="muon"))


def passes(model: Any, rows: int, length: int) -> Callable[[], None]:
    """Forward and backward on random tokens, as the trainer calls them."""
    ids_BS = torch.randint(model.config.vocab_size, (rows, length))
    labels_BS, positions_BS = ids_BS.roll(-1, dims=1), torch.arange(length).expand(rows, length)

    def run() -> None:
        hidden_BSD = model.model(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).last_hidden_state
        total, _ = linear_cross_entropy(hidden_BSD, model.lm_head.weight, labels_BS)
        (total / ids_BS.numel()).backward()
        model.zero_grad(set_to_none=True)

    return run


def held_by_first(tensors: Sequence[Tensor], ranks: int) -> list[Tensor]:
    """What ZeRO gives the first of the ranks, cut matrices whole."""
    share, begun, held = sum(tensor.numel() for tensor in tensors) / ranks, 0, []
    for tensor in tensors:
        if begun < share:
            held.append(tensor)
        begun += tensor.numel()
    return held


def shared(matrices: Sequence[Tensor], ranks: int, steps: int) -> tuple[list[Tensor], int]:
    """The matrices of the rank that has most to do, and the elements that ranks send each other under ZeRO-1."""
    total = sum(matrix.numel() for matrix in matrices)
    begin, parts = 0, []
    for matrix in matrices:
        held = {}
        for rank in range(ranks):
            low, high = (
                min(max(rank_end * total // ranks - begin, 0), matrix.numel()) for rank_end in (rank, rank + 1)
            )
            if high > low:
                held[rank] = Part(low, high - low)
        parts.append(held)
        begin += matrix.numel()
    shapes = [matrix.shape for matrix in matrices]
    owners = choose_owners(shapes, parts, ranks, steps)
    dtype = product_type(torch.device("cpu"))
    work = [
        sum(flops(s, steps, dtype) for s, o in zip(shapes, owners, strict=True) if o == rank) for rank in range(ranks)
    ]
    moved = sum(part.size for held, owner in zip(parts, owners, strict=True) for r, part in held.items() if r != owner)
    busiest = work.index(max(work))
    return [m for m, owner in zip(matrices, owners, strict=True) if owner == busiest], 2 * moved


def flops(shape: torch.Size, steps: int, dtype: torch.dtype) -> int:
    """Of one matrix."""
    return orthogonalisation_flops(shape[0], shape[1:].numel(), steps, dtype)


def update(groups: list[ParameterGroup], parameters: list[list[Tensor]], build: Any) -> Callable[[], None]:
    """One step of an optimizer over copies of the parameters, by group."""
    copies = [[nn.Parameter(tensor.detach().clone()) for tensor in part] for part in parameters]
    optimizer = build([group.holding(part) for group, part in zip(groups, copies, strict=True)])
    gradients = [[torch.randn_like(tensor) for tensor in part] for part in copies]

    def run() -> None:
        for part, given in zip(copies, gradients, strict=True):
            for parameter, gradient in zip(part, given, strict=True):
                parameter.grad = gradient.clone()
        began = time.perf_counter()
        with torch._dynamo.config.patch(disable=True):  # of DeepSpeed's; the first step would compile for a minute
            optimizer.step()
        run.seconds = time.perf_counter() - began  # type: ignore[attr-defined]

    return run


def deepspeeds(groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """DeepSpeed's own optimizer."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    muon = {"momentum": 0.95, "ns_method": "gram"}
    adamw = {"betas": (0.9, 0.95), "eps": 1e-8}
    return MuonWithAuxAdam(
        [
            {
                "params": g.parameters,
                "weight_decay": 0.1,
                "use_muon": g.use_muon,
                "lr": 1e-3,
                **(muon if g.use_muon else adamw),
            }
            for g in groups
        ]
    )


def fused(groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """AdamW for everything."""
    return torch.optim.AdamW([{"params": group.parameters} for group in groups], lr=1e-3, fused=True)


def timed(run: Callable[[], None]) -> Callable[[], float]:
    """Milliseconds of one call, or of what it says of itself."""

    def measure() -> float:
        began = time.perf_counter()
        run()
        return 1000 * getattr(run, "seconds", time.perf_counter() - began)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pangu_pi_4m", help="a file of configs/pangu_pi/models")
    parser.add_argument("--vocab_size", type=int, default=6144)
    parser.add_argument("--batch_size", type=int, default=16, help="sequences of a step")
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 4], help="of Newton-Schulz, the default first")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    config = load_model_config(MODELS / f"{arguments.model}.yaml")
    config.vocab_size = arguments.vocab_size
    model, groups = groups_of(config, "cpu")
    everything = [list(group.parameters) for group in groups]
    half = [held_by_first(part, arguments.ranks) for part in everything]
    rows = arguments.batch_size // arguments.ranks
    runs = {STEP: passes(model, rows, arguments.sequence_length)}
    for steps in arguments.steps:
        suffix = "" if steps == arguments.steps[0] else f", {steps} steps"
        own = [
            shared(part, arguments.ranks, steps)[0] if group.use_muon else held
            for group, part, held in zip(groups, everything, half, strict=True)
        ]
        build = lambda g, steps=steps: build_optimizer(g, OptimizerConfig(name="muon", muon_steps=steps), 1e-3)  # noqa: E731
        runs[OURS + suffix] = update(groups, own, build)
        runs["Muon, alone" + suffix] = update(groups, everything, build)
    runs["DeepSpeed, first half"] = update(groups, half, deepspeeds)
    runs["DeepSpeed, alone"] = update(groups, everything, deepspeeds)
    runs["AdamW"] = update(groups, half, fused)
    figures = take_turns({name: timed(run) for name, run in runs.items()}, arguments.repeats)
    shares = {
        name: [100 * own / (own + step) for own, step in zip(values, figures[STEP], strict=True)]
        for name, values in figures.items()
        if name != STEP
    }
    title = f"{arguments.model}, {arguments.vocab_size} pieces, {rows} x {arguments.sequence_length} tokens"
    tables = {
        "milliseconds": table(f"{title}: one of {arguments.ranks} ranks", "ms", figures, OURS),
        "share": table("Share of the step, within a turn", "%", shares, OURS),
    }
    found = median(shares[OURS])
    print(f"\n{OURS}: {found:.2f} % of a step, wanted at most {WANTED:g} %")
    print("\nMatrix products, % of the step's; no rank's work is done twice")
    tables["products"] = {}
    cases = {
        f"{arguments.model}, {arguments.batch_size * arguments.sequence_length:,} tokens": (
            groups, config, arguments.batch_size * arguments.sequence_length, arguments.sequence_length,
        ),
        f"{LARGE}, {LARGE_TOKENS:,} tokens": (
            groups_of(load_model_config(MODELS / f"{LARGE}.yaml"), "meta")[1],
            load_model_config(MODELS / f"{LARGE}.yaml"), LARGE_TOKENS, LARGE_LENGTH,
        ),
    }  # fmt: skip
    for name, (parts, shape, tokens, length) in cases.items():
        matrices = [parameter for group in parts if group.use_muon for parameter in group.parameters]
        whole = tokens * count_flops(shape, length).train_per_token
        for steps in arguments.steps:
            for dtype in (torch.float32, torch.bfloat16):
                share = 100 * sum(flops(matrix.shape, steps, dtype) for matrix in matrices) / whole
                print(f"{name}, {steps} steps, {str(dtype).removeprefix('torch.')}: {share:.2f}")
                tables["products"][f"{name}, {steps} steps, {dtype}"] = share
    matrices = [parameter for group in groups if group.use_muon for parameter in group.parameters]
    sent = 4 * shared(matrices, arguments.ranks, arguments.steps[0])[1] / arguments.ranks
    gradients = 4 * sum(parameter.numel() for parameter in model.parameters())
    print(
        f"\nSent by a rank and step under ZeRO-1: {sent / 1e6:.2f} MB; its gradients alone are {gradients / 1e6:.2f} MB"
    )
    finish("muon_step", tables, ranks=arguments.ranks, threads=arguments.threads, sent_bytes=sent)


if __name__ == "__main__":
    main()
