"""What a run will need before it starts: memory by part for every setting, time, tokens per parameter, disk.

    python -m pretrain plan --config configs/pangu_pi/runs/1b_pro.yaml --nodes 4 --gpus 8 --gpu a100-80

Neither model nor data are touched. Memory is that of `zero_memory.py` (states, by ZeRO stage) with
`activation_memory.py` (one micro-batch, by a pass without numbers); time, tokens and disk are

    days                 = FLOPs of all samples / (ranks x peak FLOP/s x MFU) / 86,400
    FLOPs of all samples = the task's own count (see throughput.py) x samples; with recomputation x 4/3, because the
                           forward pass is a third of it and is done again; with later rounds a third of round 1 more
                           for each choice by frozen losses
    tokens per parameter = units of all steps / all parameters
    checkpoint           = weights twice (the engine's and the model's own file) + fp32 master copy + moments
    shards               = 2 bytes a token, 4 where the vocabulary does not fit into 16 bits, for one pass over data
                           that is not repeated

MFU is an assumption, and so is the headroom that is left for the allocator, kernels and the collective library. Of the
settings that fit, the plan picks one without recomputation before one with it, then the lowest stage, which exchanges
least.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pretrain.config import TrainConfig
from pretrain.engine import accumulation_steps, deepspeed_config, engine_at_stage
from pretrain.errors import ConfigurationError
from pretrain.losses.loss_layout import LossLayout, choose_layout
from pretrain.optimizers.optimizer import parameter_groups
from pretrain.planning.accelerators import Device, find_device
from pretrain.planning.activation_memory import ActivationMemory, blank_model, measure
from pretrain.planning.options import PlanConfig
from pretrain.planning.zero_memory import (
    MASTER_BYTES,
    MOMENT_BYTES,
    STAGE_3_DEFAULTS,
    Moment,
    Setting,
    States,
    host_bytes,
    peak_moment,
)
from pretrain.precision import resolve_gradient_precision
from pretrain.tasks.base import Task

RECOMPUTATION = 4 / 3
"""Work of a step with recomputation, in that without."""


@dataclass(frozen=True)
class Choice:
    """One setting and what it needs."""

    stage: int
    """ZeRO stage."""
    checkpointing: bool
    """Whether blocks are recomputed in backward."""
    precision: str
    """bf16 or fp32."""
    peak: Moment
    """The moment at which a rank holds the most."""
    unchunked: float | None
    """Bytes of that moment if all logits existed at once; None for tasks without a chunked loss."""
    activations: ActivationMemory
    """Of one micro-batch."""
    host: float
    """Bytes of host memory for one rank."""
    fits: bool
    """Whether the peak leaves the headroom."""


@dataclass(frozen=True)
class Plan:
    """Everything that `plan_report.py` prints. Bytes unless said otherwise."""

    options: PlanConfig
    """What was asked."""
    config: TrainConfig
    """The run."""
    device: Device
    """Of one rank."""
    states: States
    """Of the model."""
    accumulation: int
    """Micro-batches of a step on one rank."""
    choices: list[Choice]
    """Every setting, without recomputation first."""
    how_measured: str
    """How activations were found."""
    loss_layout: LossLayout | None
    """How the loss cuts its logits on that device; None for tasks without a chunked loss."""
    refusal: str | None
    """Why there is no setting with recomputation, if there is none."""
    picked: Choice | None
    """The setting to take; None if none fits."""
    units: int
    """Tokens (or what the task counts) of all steps."""
    unit: str
    """Their name."""
    flops: float
    """Of all samples, without recomputation."""
    checkpoint: float
    """One checkpoint."""
    shards: float | None
    """Token shards of one pass; None for tasks that read no shards."""

    @property
    def parameters(self) -> int:
        """All of them; the buffers of a frozen part count."""
        return self.states.parameters + self.states.frozen

    def units_per_second(self, choice: Choice) -> float:
        """Of all ranks together, at the assumed MFU."""
        rate = self.options.ranks * self.device.peak_tflops * 1e12 * self.options.mfu
        return rate / (self.flops / self.units) / (RECOMPUTATION if choice.checkpointing else 1.0)


def make_plan(config: TrainConfig, options: PlanConfig, device: Device | None = None) -> Plan:
    """The plan of a run.

    Args:
        config: the run as `train.py` would read it.
        options: the machines.
        device: of one rank; None looks it up, which for a CPU is a measurement.

    Raises:
        ConfigurationError: the global batch does not fit the ranks, or the model cannot be built.
    """
    task = config.task
    accumulation = accumulation_steps(config, options.ranks)
    device = device or find_device(options.gpu, options.gpus, options.memory_gb, config.telemetry.peak_tflops)
    states = count_states(config)
    tracer = _Tracer(task, config.batch.micro_size, device)
    choices, refusal = [], None
    for checkpointing in (False, True):
        try:
            choices += [_choice(config, options, device, states, tracer, stage, checkpointing) for stage in range(4)]
        except ConfigurationError as error:
            if not checkpointing or config.engine.activation_checkpointing:
                raise
            refusal = str(error)
    fitting = [choice for choice in choices if choice.fits]
    picked = min(fitting, key=lambda c: (c.checkpointing, c.stage), default=None)
    per_sample, unit = task.units_per_sample()
    samples = config.batch.samples(config.total_steps)
    rescored = (config.rounds.count - 1) * config.batch.samples(config.steps) * (config.rounds.loss_source == "frozen")
    kept = picked or choices[0]
    weights = 4 if kept.precision == "fp32" else 2
    masters = 0 if kept.precision == "fp32" and kept.stage == 0 else MASTER_BYTES
    return Plan(
        options=options,
        config=config,
        device=device,
        states=states,
        accumulation=accumulation,
        choices=choices,
        how_measured=tracer.how,
        loss_layout=tracer.layout,
        refusal=refusal,
        picked=picked,
        units=samples * per_sample,
        unit=unit,
        flops=task.flops_per_sample() * (samples + rescored / 3),
        checkpoint=2 * weights * (states.parameters + states.frozen) + (masters + MOMENT_BYTES) * states.parameters,
        shards=_shards(task, config.batch.samples(config.steps) * per_sample),
    )


def predict(config: TrainConfig, options: PlanConfig) -> Moment:
    """The largest moment of the configuration's own setting, for a rank of `options`."""
    device = find_device(options.gpu, options.gpus, options.memory_gb, tflops=0.0)
    tracer = _Tracer(config.task, config.batch.micro_size, device)
    own = config.engine
    return _choice(
        config, options, device, count_states(config), tracer, own.zero_stage, own.activation_checkpointing
    ).peak


def count_states(config: TrainConfig) -> States:
    """Parameters by what happens to them, from the model without numbers."""
    task, model = config.task, blank_model(config.task)
    groups = parameter_groups(
        model, task.undecayed_parameters(model), config.optimizer, task.learning_rate_factors(model)
    )
    sizes = [[parameter.numel() for parameter in group.parameters] for group in groups]
    threshold = STAGE_3_DEFAULTS["stage3_param_persistence_threshold"]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return States(
        parameters=sum(map(sum, sizes)),
        frozen=sum(tensor.numel() for tensor in (*frozen, *model.buffers())),
        largest_group=max(map(sum, sizes)),
        small=sum(size for group in sizes for size in group if size < threshold),
    )


def largest_micro_batch(
    config: TrainConfig, options: PlanConfig, sizes: Iterable[int], checkpointing: bool
) -> int | None:
    """The first of `sizes` for which a setting fits; None if there is none.

    Activations of one and of two samples are found, and those of the rest lie on the line through both.

    Args:
        config: the run; its micro-batch is not looked at.
        options: the machines.
        sizes: micro-batches to try, in samples.
        checkpointing: whether blocks are recomputed in backward.
    """
    device = find_device(options.gpu, options.gpus, options.memory_gb, 1.0)
    states, line = count_states(config), _Line(config.task, device)
    for size in sizes:
        line.size = size
        sized = replace(config, batch=replace(config.batch, size=size * options.ranks, micro_size=size))
        if any(_choice(sized, options, device, states, line, stage, checkpointing).fits for stage in range(4)):
            return size
    return None


class _Line:
    """Activations of a micro-batch of any size, from those of one and of two samples."""

    vocabulary = None

    def __init__(self, task: Task, device: Device) -> None:
        self._one, self._two, self.size = _Tracer(task, 1, device), _Tracer(task, 2, device), 1

    def __call__(self, precision: str, checkpointing: bool, chunked: bool = True) -> ActivationMemory:
        one = self._one(precision, checkpointing, chunked)
        return one.continued(self._two(precision, checkpointing, chunked), self.size)


class _Tracer:
    """Activations of the task's micro-batch, each found once, with the loss's logits as they lie on `device`."""

    def __init__(self, task: Task, size: int, device: Device) -> None:
        self.task, self.size, self.how = task, size, ""
        self.vocabulary = task.loss_vocabulary()
        self.layout: LossLayout | None = None
        if self.vocabulary is not None:
            # Every accelerator that plans know is NVIDIA's, where torch brings what the fused loss needs.
            asked, on_cuda = task.loss_chunk_elements, device.kind != "cpu"
            own = asked if isinstance(asked, int) else None
            kind = "cuda" if on_cuda else "cpu"
            self.layout = choose_layout(kind, device.memory, self.vocabulary, own, fused=on_cuda, wide=on_cuda)
        self._found: dict[Any, ActivationMemory] = {}

    def __call__(self, precision: str, checkpointing: bool, chunked: bool = True) -> ActivationMemory:
        key = precision, checkpointing, chunked
        if key not in self._found:
            task, row = self.task, None
            if self.layout is not None and self.vocabulary is not None:
                task, row = copy.copy(task), self.layout.row(self.vocabulary)
                layout = self.layout if chunked else replace(self.layout, tokens=2**62)
                task.loss_chunk_elements = layout
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            self._found[key], self.how = measure(task, self.size, dtype, checkpointing, row)
        return self._found[key]


def _choice(
    config: TrainConfig,
    options: PlanConfig,
    device: Device,
    states: States,
    tracer: _Tracer | _Line,
    stage: int,
    checkpointing: bool,
) -> Choice:
    accelerated = options.gpu != "cpu"
    config.task.plan_for("cuda" if accelerated else "cpu")
    low = config.engine.precision == "bf16" or (accelerated and config.engine.precision == "auto")
    precision = "bf16" if low else "fp32"
    engine = replace(engine_at_stage(config.engine, stage), precision=precision)  # type: ignore[arg-type]
    config = replace(config, engine=engine)
    accumulation = accumulation_steps(config, options.ranks)
    zero = deepspeed_config(config, options.ranks, states.parameters, accelerated)["zero_optimization"]
    setting = Setting(
        stage=stage,
        ranks=options.ranks,
        weight_bytes=2 if precision == "bf16" else 4,
        gradient_bytes=2 if resolve_gradient_precision(config, accumulation * options.ranks) == "bf16" else 4,
        accumulation=accumulation,
        zero=zero,
        offload_optimizer=engine.offload.optimizer == "cpu",
        offload_parameters=engine.offload.parameters == "cpu",
        counts_when_written=options.gpu == "cpu",
    )
    activations = tracer(precision, checkpointing)
    peak = peak_moment(setting, states, activations)
    unchunked = None
    if tracer.vocabulary is not None:
        unchunked = peak_moment(setting, states, tracer(precision, checkpointing, chunked=False)).total
    fits = peak.total <= device.memory * (1 - options.headroom)
    return Choice(stage, checkpointing, precision, peak, unchunked, activations, host_bytes(setting, states), fits)


def _shards(task: Task, tokens: int) -> float | None:
    """Bytes of token shards that one pass over the data of round 1 reads."""
    vocabulary = task.loss_vocabulary()
    return None if vocabulary is None else float(tokens * (2 if vocabulary <= 2**16 else 4))
