"""What a budget buys, as text: `python -m pretrain plan --hours 12 --nodes 1 --gpus 8 --gpu h100-80 --tokens 10B`."""

from __future__ import annotations

from shlex import quote
from textwrap import fill

from pretrain.planning.budget_run import Settled, files, settle, write
from pretrain.planning.budget_yaml import reasons
from pretrain.planning.options import BudgetConfig
from pretrain.planning.plan_report import describe
from pretrain.planning.scaling_law import FITTED_PARAMETERS, FITTED_TOKENS

WIDTH = 120


def run(options: BudgetConfig) -> str:
    """The report that the command prints; writes the configuration where it is asked to.

    Raises:
        ConfigurationError: nothing fits the budget, or a file is there already.
    """
    places = files(options)
    settled = settle(options)
    blocks = [_choices(settled), _expectations(settled), describe(settled.plan)]
    if places is not None:
        write(settled, *places)
        launch = "python" if options.ranks == 1 else "deepspeed"
        shards = "" if options.shards else " --task.train '[\"SHARDS\"]'"
        command = f"{launch} pretrain/train.py --config {quote(str(places[0]))}{shards}"
        blocks.append(f"written: {places[0]}, {places[1]}\n  {command}")
    return "\n\n".join(blocks)


def _choices(settled: Settled) -> str:
    lines = []
    for name, reason in reasons(settled.budget, settled.run, settled.choice, settled.too_large).items():
        text = fill(
            f"{_value(settled, name)} - {reason}", WIDTH, initial_indent=f"{name:11}", subsequent_indent=" " * 11
        )
        lines.append(text)
    return "\n".join(lines)


def _value(settled: Settled, name: str) -> str:
    run, model, micro = settled.run, settled.run.model, settled.plan.config.batch.micro_size
    return {
        "model": f"{model.hidden_size} x {model.num_hidden_layers}",
        "steps": f"{run.steps:,} steps",
        "batch": f"{run.batch} sequences, {micro} a pass",
        "optimizer": f"AdamW, peak {run.rate:.3g}",
        "schedule": "cosine",
        "rounds": str(run.rounds),
        "engine": f"stage {settled.choice.stage}",
    }[name]


def _expectations(settled: Settled) -> str:
    budget, run = settled.budget, settled.run
    options, device = budget.options, budget.device
    hours = options.ranks * options.hours
    rate = settled.plan.units_per_second(settled.choice)
    low, high = run.losses
    inside = FITTED_PARAMETERS[0] <= run.parameters <= FITTED_PARAMETERS[1] and run.tokens >= FITTED_TOKENS[0]
    loss = (
        f"loss {low:.2f} to {high:.2f} nats a token on English web text, by the two fits of arXiv 2203.15556 and "
        "2404.10102"
        if inside
        else "loss: not predicted; the published laws were fitted from 70 M parameters and 5 B tokens on, and this is "
        "less. `python -m eval scaling` fits one to runs of yours"
    )
    speed = (
        f"{rate:,.0f} tokens/s at {options.mfu:.0%} MFU, an assumption, of {device.peak_tflops:,.3g} TFLOP/s a rank "
        f"({device.peak_source}); {options.reserve:.0%} of the time is left for start, validation and checkpoints"
    )
    price = f", {hours * options.price:,.2f} at {options.price:g} an hour" if options.price is not None else ""
    lines = [speed, loss, f"{hours:,.4g} device hours{price}"]
    return "\n".join(fill(line, WIDTH, initial_indent=f"{'expected':11}", subsequent_indent=" " * 11) for line in lines)
