"""The configuration of a training run: frozen dataclasses, one per concern, read from YAML and the command line.

`deepspeed pretrain/train.py --config configs/pangu_pi/runs/quickstart.yaml --optimizer.lr 1e-3`. Every field has a
docstring, which is its `--help`. Nothing here allocates; sizes that depend on the world are derived in `engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, Literal

from pretrain.errors import ConfigurationError
from pretrain.hooks import EvaluationHook
from pretrain.rate_rules import BatchRule, WidthRule
from pretrain.schedule import ScheduleConfig, fall
from pretrain.tasks.base import Task
from pretrain.tasks.facts import check_declared

SMALLEST = {
    "steps": 1,
    "batch.size": 1,
    "batch.micro_size": 1,
    "optimizer.weight_decay": 0,
    "optimizer.clip": 0,
    "optimizer.muon_momentum_warmup_steps": 0,
    "schedule.warmup_steps": 0,
    "loader.workers": 0,
    "loader.prefetch": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "validation.every": 1,
    "validation.samples": 1,
    "telemetry.every": 1,
    "telemetry.straggler_ratio": 1,
    "guards.max_consecutive_skips": 1,
    "guards.max_rollbacks": 0,
    "guards.spike_sigmas": 1,
    "guards.spike_steps": 1,
    "distributed.silence_seconds": 1,
    "distributed.timeout_seconds": 1,
    "rounds.count": 1,
    "rounds.parts": 1,
}
"""The smallest value that a field can take."""


@dataclass(frozen=True)
class BatchConfig:
    """How many samples make one optimizer step."""

    size: int = 32
    """Global batch in samples (sequences), with `ramp` the first one; the same on any number of ranks."""
    micro_size: int = 8
    """Samples of one forward pass on one rank; accumulation follows from size, micro_size and the world size."""
    allow_change: bool = False
    """Continue a run whose global batch was another, from the sample where it stands; its steps count as before."""
    ramp: Sequence[tuple[int, int]] = ()
    """Global batches of other sizes later on: [[number, size], ...], each from the global batch of that number (from 0,
    as `data_pipeline replay` counts them) on. Other micro-batches are accumulated; the stream of samples, micro_size,
    learning rates and schedules, which count steps, stay as they are."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """First number and size of the batches of every size, in their order."""
        return [(0, self.size), *((first, size) for first, size in self.ramp)]

    @property
    def largest(self) -> int:
        """The most samples of a step."""
        return max(size for _, size in self.sizes)

    def samples(self, steps: int) -> int:
        """Samples of the first `steps` global batches together."""
        ends = [first for first, _ in self.ramp] + [steps]
        return sum(size * max(0, min(end, steps) - first) for (first, size), end in zip(self.sizes, ends, strict=True))


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and its hyperparameters (defaults: docs/methods/tiny_lm.md: training)."""

    name: Literal["auto", "adamw", "muon"] = "auto"
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest. auto is the task's own
    (docs/recipe.md)."""
    lr: float | None = None
    """Peak learning rate of AdamW. None applies `batch_rule` to the global batch, or beside Muon `width_rule`."""
    batch_rule: BatchRule = field(default_factory=BatchRule)
    """Learning rate of AdamW from the (largest) batch size, used when `lr` is None."""
    width_rule: WidthRule = field(default_factory=WidthRule)
    """Learning rate of what Muon does not update from the model's width, used when `lr` is None."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases and series scales are never decayed."""
    weight_decay_schedule: Literal["constant", "linear", "cosine", "with_lr"] = "constant"
    """Course of the coefficient `weight_decay`; a step shrinks weights by that times its learning rate, whatever the
    course. linear and cosine (half of one) fall to zero at the last step; with_lr follows the learning rate's schedule,
    so that the shrinking follows its square."""
    clip: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""
    muon_lr: float = 0.02
    """Peak learning rate of the matrices that Muon updates."""
    muon_momentum: float = 0.95
    """Muon's momentum."""
    muon_momentum_start: float = 0.85
    """Muon's momentum at the first step, with `muon_momentum_warmup_steps`."""
    muon_momentum_warmup_steps: int = 0
    """Steps in which Muon's momentum goes in equal parts from `muon_momentum_start` to `muon_momentum`, once in a run;
    0 has it constant. The trainer of Muon's authors takes 300 from 0.85 to 0.95."""
    muon_steps: Literal[4, 5] = 5
    """Newton-Schulz steps of Muon: 5 orthogonalise twice as closely as the usual constant ones, 4 about as closely."""
    embedding_lr_factor: float = 1.0
    """Learning rate of embedding tables (and of a head tied to one), in those of `lr`."""
    head_lr_factor: float = 1.0
    """Learning rate of an output head with weights of its own, in those of `lr`."""
    vector_lr_factor: float = 1.0
    """Learning rate of what is not decayed (norms, biases, series scales), in those of `lr`."""

    def decay_factor(self, step: int, total_steps: int, rate: float) -> float:
        """Weight decay's coefficient at `step` (from 0) as a fraction of `weight_decay`.

        Args:
            step: as the schedule of the learning rate counts it.
            total_steps: of that schedule.
            rate: the learning rate there as a fraction of its peak.
        """
        if self.weight_decay_schedule == "with_lr":
            return rate
        return 1.0 if self.weight_decay_schedule == "constant" else fall(self.weight_decay_schedule, step, total_steps)

    def momentum(self, step: int) -> float:
        """Muon's momentum at `step` of the run (from 0)."""
        if step >= self.muon_momentum_warmup_steps:
            return self.muon_momentum
        done = step / self.muon_momentum_warmup_steps
        return (1 - done) * self.muon_momentum_start + done * self.muon_momentum


@dataclass(frozen=True)
class OffloadConfig:
    """Where ZeRO keeps states that do not fit on the device."""

    optimizer: Literal["none", "cpu"] = "none"
    """Optimizer states (stages 1 to 3)."""
    parameters: Literal["none", "cpu"] = "none"
    """Parameters (stage 3)."""


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed engine, precision and memory."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage: 0 replicates, 1 shards optimizer states, 2 gradients too, 3 parameters too."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 on an accelerator that has it. On a CPU it is fp32, or in a long run the faster of both, if the
    processor has instructions for bf16 (see pretrain/speed_choice.py)."""
    gradient_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type in which bf16 gradients are summed over micro-batches and averaged over ranks; auto is fp32 where a step has
    more than one micro-batch, on one rank or on all together."""
    tf32: bool = False
    """On CUDA, round the inputs of fp32 matrix products and convolutions to TF32 (10 bits), which is several times
    faster; concerns runs in fp32 and the few fp32 products of a bf16 run."""
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    """Offloading to host memory."""
    activation_checkpointing: bool = False
    """Recompute every block in backward instead of keeping its activations."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile the blocks of the model. auto does where that repays the minute it takes: for decoders on an
    accelerator, elsewhere after measuring it, never in a short run."""
    deterministic: bool = False
    """On CUDA, use only algorithms whose results do not depend on the order of threads, so that a run repeats and
    resumes to the bit on the same type of device with the same ranks and stage; slower. On a CPU that holds without."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Raw DeepSpeed configuration, merged over what is derived from the rest."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep. Resuming is automatic."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints to keep."""
    resume: bool = True
    """Continue from the newest complete checkpoint of `output` if there is one."""
    verify: bool = True
    """Check every file's SHA-256 before loading."""


@dataclass(frozen=True)
class GuardConfig:
    """What happens when the numbers stop being numbers, or leave their course."""

    max_consecutive_skips: int = 5
    """Steps with non-finite gradients in a row before rolling back to the last checkpoint."""
    max_rollbacks: int = 3
    """Rollbacks before the run gives up with an error."""
    spike_sigmas: float | None = 10.0
    """A loss this many robust standard deviations above the median of the last 100 is a spike, and noted; None looks
    for none."""
    spike_steps: int = 3
    """Spikes in a row before rolling back, or before the new level is taken for the course."""
    spike_rollback: bool = False
    """Roll back after spikes too. No checkpoint is made while their number is open."""


@dataclass(frozen=True)
class DistributedConfig:
    """How long ranks wait for each other."""

    silence_seconds: float = 300
    """Seconds without a sign of life from a rank after which the others name its host and end with exit code 1. A beat
    comes from a thread, so long evaluations and checkpoints do not count as silence."""
    timeout_seconds: float = 1800
    """Seconds that ranks wait for each other at the start, that a collective of the engine may take, and that a step
    may take before the run ends with the stacks of all ranks in its folder; other phases are only noted."""


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are read."""

    workers: int = 0
    """Worker processes per rank; 0 reads in the training process."""
    prefetch: int = 2
    """Steps that each worker reads ahead."""


@dataclass(frozen=True)
class ValidationConfig:
    """Loss on held-out sources."""

    every: int = 500
    """Steps between validations; the last step is always validated."""
    samples: int | None = None
    """Samples per source; None takes all."""
    at_start: bool = False
    """Validate before the first step too: where inherited weights begin, say."""


@dataclass(frozen=True)
class TelemetryConfig:
    """What is logged, where, how often."""

    every: int = 10
    """Steps between rows of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb_project: str | None = None
    """Weights & Biases project; None does not use it."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one rank for MFU; None takes the known device's or measures a matrix product."""
    straggler_ratio: float = 1.5
    """A rank that takes this many times the median rank's seconds for its data or its forward passes, in three rows
    one after the other and for twenty seconds, is noted by name."""
    progress_bar: bool = True
    """Show a progress bar with an ETA on rank 0."""


@dataclass(frozen=True)
class RoundsConfig:
    """Going over the data again: later rounds train on what is still hard (docs/methods/tiny_lm.md: rounds)."""

    count: int = 1
    """Rounds; 1 is ordinary training. The paper recommends two, and a third gains nothing."""
    keep: float = 0.5
    """Share of round 1 that each later round serves: round(keep * steps) steps. 0.5 gives most of the gain."""
    unit: Literal["batch", "sample"] = "batch"
    """What is chosen: whole global batches of round 1 (the reference), or single samples, grouped anew."""
    loss_source: Literal["frozen", "log"] = "frozen"
    """Losses of the frozen model at the end of a round (one forward pass over round 1's data), or those that training
    recorded, which cost nothing but make early units look hard because the model was young."""
    scope: Literal["global", "part"] = "global"
    """Choose among all units at once, or an equal share from each of `parts` sequential parts of round 1."""
    parts: int = 8
    """Sequential parts, for scope: part."""
    selection: Literal["loss", "uniform"] = "loss"
    """Probabilities in proportion to exp(loss), or equal ones (the control)."""
    schedule: Literal["fresh", "continue"] = "fresh"
    """Every round has the whole schedule with its warm-up, or one schedule spans all rounds."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    task: Task
    """What is trained: a subclass of pretrain.tasks.Task by import path, with its arguments."""
    output: str
    """Run directory."""
    steps: int
    """Optimizer steps of the run; with several rounds, of round 1."""
    seed: int = 1234
    """Seeds initialisation, data order and every random draw."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Batch sizes."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed engine."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Data loading."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    """Non-finite values and loss spikes."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Silent hosts and stalled collectives."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation."""
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    """Logging."""
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    """Multiple-round training."""
    hooks: Sequence[EvaluationHook] = ()
    """Evaluations during the run, by import path (for example eval.hooks.LmEvalHook)."""

    def __post_init__(self) -> None:
        if self.optimizer.name == "auto":
            if (own := self.task.default_optimizer) not in ("adamw", "muon"):
                raise ConfigurationError(
                    f"optimizer.name is auto, and default_optimizer of {type(self.task).__name__} is {own!r}; "
                    "it must be adamw or muon"
                )
            object.__setattr__(self, "optimizer", replace(self.optimizer, name=self.task.default_optimizer))
        if problem := check_declared(self.task):
            raise ConfigurationError(problem)
        for name, smallest in SMALLEST.items():
            value = attrgetter(name)(self)
            if value is not None and not value >= smallest:
                raise ConfigurationError(f"{name} is {value}; it must be at least {smallest}")
        self._check_ramp()
        roles = [f"optimizer.{role}_lr_factor" for role in ("embedding", "head", "vector")]
        anchors = ["batch_rule.anchor_lr", "batch_rule.anchor_batch_tokens", "width_rule.anchor_lr"]
        anchors = [f"optimizer.{name}" for name in (*anchors, "width_rule.anchor_width")]
        for name in ("optimizer.lr", "optimizer.muon_lr", "optimizer.eps", "telemetry.peak_tflops", *roles, *anchors):
            value = attrgetter(name)(self)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} is {value}; it must be greater than 0")
        for name, value in (
            ("optimizer.betas", max(self.optimizer.betas)),
            ("optimizer.betas", min(self.optimizer.betas)),
            ("optimizer.muon_momentum", self.optimizer.muon_momentum),
            ("optimizer.muon_momentum_start", self.optimizer.muon_momentum_start),
        ):
            if not 0 <= value < 1:
                raise ConfigurationError(f"{name} has {value}; it must be at least 0 and below 1")
        moving, last = self.optimizer.muon_momentum_warmup_steps, self.optimizer.muon_momentum
        if moving and self.optimizer.muon_momentum_start > last:
            raise ConfigurationError(
                f"optimizer.muon_momentum_start is {self.optimizer.muon_momentum_start}, above muon_momentum ({last}); "
                "a warm-up rises: set a lower start or a higher optimizer.muon_momentum"
            )
        for name in ("warmup_fraction", "final_ratio", "decay_fraction"):
            if not 0 <= (value := getattr(self.schedule, name)) <= 1:
                raise ConfigurationError(f"schedule.{name} is {value}; it must lie between 0 and 1")
        if not 0 < self.rounds.keep <= 1:
            raise ConfigurationError(f"rounds.keep is {self.rounds.keep}; it must be greater than 0 and at most 1")
        if self.rounds.count > 1 and not self.later_steps:
            raise ConfigurationError(
                f"rounds.keep {self.rounds.keep} of {self.steps} steps is less than one step; raise one of the two"
            )
        if self.rounds.count > 1 and self.rounds.scope == "part" and self.rounds.parts > self.later_steps:
            raise ConfigurationError(
                f"rounds.parts is {self.rounds.parts}, but a later round has only {self.later_steps} steps; lower it"
            )
        for hook in self.hooks:
            if hook.every < 1:
                raise ConfigurationError(f"hooks: {type(hook).__name__}.every is {hook.every}; it must be at least 1")
        if self.engine.offload.parameters != "none" and self.engine.zero_stage != 3:
            raise ConfigurationError("engine.offload.parameters needs engine.zero_stage 3")
        if self.engine.offload.optimizer != "none" and self.engine.zero_stage == 0:
            raise ConfigurationError("engine.offload.optimizer needs engine.zero_stage 1, 2 or 3")

    def _check_ramp(self) -> None:
        """Whether a ramp can be: numbers that rise, whole batches, one round."""
        firsts, sizes = ([pair[place] for pair in self.batch.sizes] for place in (0, 1))
        if not all(before < after for before, after in pairwise(firsts)):
            raise ConfigurationError(
                f"batch.ramp begins at the batches {firsts[1:]}; give numbers that rise, the first of them above 0 "
                "(batch.size is the size from 0 on)"
            )
        if min(sizes) < 1:
            raise ConfigurationError(
                f"batch.ramp has batches of {min(sizes)}; each pair is [number, size], size 1 or more"
            )
        if self.batch.ramp and self.rounds.count > 1:
            raise ConfigurationError(
                f"batch.ramp needs batches of one size in a run of {self.rounds.count} rounds, because later rounds "
                "serve what the first one served; leave it empty, or set rounds.count to 1"
            )

    @property
    def later_steps(self) -> int:
        """Steps of each round after the first."""
        return round(self.rounds.keep * self.steps)

    @property
    def total_steps(self) -> int:
        """Steps of all rounds together."""
        return self.steps + (self.rounds.count - 1) * self.later_steps
