"""A plan as text, which `python -m pretrain plan` prints."""

from __future__ import annotations

from collections.abc import Sequence

from pretrain.command_line import run_with
from pretrain.config import TrainConfig
from pretrain.planning.options import PlanConfig
from pretrain.planning.plan import Choice, Plan, make_plan

DAY = 86_400
PARTS = ("weights", "gradients", "optimizer", "buffers", "activations", "total")


def run(config: TrainConfig, _: str, options: PlanConfig) -> str:
    """The report that the command prints.

    Raises:
        ConfigurationError: the batch does not fit the ranks, or the model cannot be built.
    """
    return describe(make_plan(config, options))


def from_words(words: Sequence[str]) -> str:
    """The command: `run` of a run's configuration and more on a command line."""
    return run_with("plan", words, PlanConfig, run)


def describe(plan: Plan) -> str:
    """The plan as a few dozen lines."""
    blocks = [_head(plan), _memory(plan), _activations(plan), _verdict(plan), _time(plan), _disk(plan)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _head(plan: Plan) -> list[str]:
    options, batch, device = plan.options, plan.config.batch, plan.device
    usable = device.memory * (1 - options.headroom)
    name = "largest batch" if batch.ramp else "batch"
    per_step = batch.largest * plan.config.task.units_per_sample()[0]
    return [
        f"{plan.parameters:,} parameters; {options.nodes} node(s) x {options.gpus} rank(s) = {options.ranks} ranks",
        f"{name} {batch.largest} = {options.ranks} ranks x {batch.micro_size} x {plan.accumulation} micro-batches, "
        f"{per_step:,} {plan.unit} a step",
        f"memory {_size(device.memory)} a rank ({device.memory_source}), {_size(usable)} usable: "
        f"headroom {options.headroom:.0%} is an assumption",
    ]


def _memory(plan: Plan) -> list[str]:
    width = 11
    chunked = any(choice.unchunked is not None for choice in plan.choices)
    head = f"{'a rank, at the largest moment':34}" + "".join(f"{part:>{width + 1}}" for part in PARTS)
    head += f"{'logits at once':>16}" * chunked + "   moment    fits"
    lines = [head, "-" * len(head)]
    for choice in plan.choices:
        name = f"ZeRO {choice.stage}, {choice.precision}" + ", recomputation" * choice.checkpointing
        values = "".join(f"{_size(getattr(choice.peak, part)):>{width + 1}}" for part in PARTS)
        unchunked = "" if choice.unchunked is None else f"{_size(choice.unchunked):>16}"
        lines.append(f"{name:34}{values}{unchunked}   {choice.peak.name:8}  {'yes' if choice.fits else 'no'}")
    if chunked:
        lines.append("logits at once: the total if the logits of a micro-batch were not cut into chunks")
    if plan.refusal:
        lines.append(f"no recomputation: {plan.refusal}")
    return lines


def _activations(plan: Plan) -> list[str]:
    size = plan.config.batch.micro_size
    lines = [f"activations of a micro-batch of {size} ({plan.how_measured})"]
    for precision in dict.fromkeys(choice.precision for choice in plan.choices):
        for checkpointing in (False, True):
            found = [c for c in plan.choices if (c.precision, c.checkpointing) == (precision, checkpointing)]
            if found:
                memory = found[0].activations
                logits = f", of which logits {_size(memory.logits)}" * (found[0].unchunked is not None)
                name = f"{precision}, {'with' if checkpointing else 'without'} recomputation"
                kept = f"kept for backward {_size(memory.kept)}, at their peak {_size(memory.peak)}"
                lines.append(f"  {name:28} {kept}{logits}")
    if (layout := plan.loss_layout) is not None:
        tokens = size * plan.config.task.units_per_sample()[0]
        chunks = layout.chunks(tokens)
        lines.append(
            f"  the loss cuts its {tokens:,} tokens into {len(chunks):,} chunk(s) of {chunks[0].stop:,} "
            "(task.loss_chunk_elements)"
        )
    return lines


def _verdict(plan: Plan) -> list[str]:
    own = plan.config.engine
    picked = plan.picked
    if picked is None:
        smallest = min(plan.choices, key=lambda choice: choice.peak.total)
        return [
            f"nothing fits: the least is {_size(smallest.peak.total)} ({_name(smallest)}). Lower batch.micro_size, "
            "use more ranks, offload (engine.offload.optimizer cpu), or take devices with more memory."
        ]
    lines = [
        f"picked: {_name(picked)}: {_size(picked.peak.total)} a rank",
        f"  --engine.zero_stage {picked.stage} --engine.activation_checkpointing {str(picked.checkpointing).lower()}"
        + f" --engine.precision {picked.precision}",
    ]
    if picked.host:
        lines.append(f"  offloading takes {_size(picked.host * plan.options.gpus)} of host memory on each node")
    same = next(c for c in plan.choices if (c.stage, c.checkpointing) == (own.zero_stage, own.activation_checkpointing))
    if same is not picked:
        state = "fits too" if same.fits else "does not fit"
        lines.append(f"  the configuration's own setting, {_name(same)}, {state}")
    if own.compile is True:
        lines.append("  engine.compile is not part of this: compiled blocks keep no more than eager ones")
    return lines


def _time(plan: Plan) -> list[str]:
    options, device = plan.options, plan.device
    lines = [
        f"{plan.units:,} {plan.unit} in {plan.config.total_steps:,} steps: {plan.units / plan.parameters:,.1f} "
        f"{plan.unit} per parameter"
    ]
    choice = plan.picked or plan.choices[0]
    if choice.precision == "fp32" and options.gpu != "cpu" and plan.config.telemetry.peak_tflops is None:
        return [*lines, "time: the known peak is bf16's; give that of fp32 with --telemetry.peak_tflops"]
    rate = plan.units_per_second(choice)
    return [
        *lines,
        f"{rate:,.0f} {plan.unit}/s and {plan.units / rate / DAY:,.2f} days ({plan.units / rate / 3600:,.1f} hours) at "
        f"{options.mfu:.0%} MFU, an assumption, of {device.peak_tflops:,.3g} TFLOP/s a rank ({device.peak_source})",
    ]


def _disk(plan: Plan) -> list[str]:
    keep = plan.config.checkpoint.keep
    shards = "" if plan.shards is None else f"; token shards of one pass {_size(plan.shards)}"
    return [
        f"disk: a checkpoint {_size(plan.checkpoint)}, {keep} kept and one being written "
        f"{_size(plan.checkpoint * (keep + 1))}{shards}"
    ]


def _name(choice: Choice) -> str:
    recomputation = "with" if choice.checkpointing else "without"
    return f"ZeRO stage {choice.stage} in {choice.precision}, {recomputation} recomputation"


def _size(size: float) -> str:
    """Bytes with a unit, decimal as on data sheets, to three digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{size:.0f}"
