"""The DeepSpeed engine: its configuration derived from ours, and the few questions the loop asks it.

What is derived: micro-batch and accumulation from the global batch, ZeRO stage and offload, precision from the device,
bucket sizes from the model (DeepSpeed's defaults reserve gigabytes that a small model cannot fill). The raw mapping
`engine.deepspeed` is merged last and wins, but for what a field of ours decides (`OWNED`).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import Tensor, nn

from pretrain.config import EngineConfig, TrainConfig
from pretrain.errors import ConfigurationError
from pretrain.model_building import build_for_partition, partition
from pretrain.optimizers.master_weights import MasterWeights, round_model
from pretrain.optimizers.muon import Muon
from pretrain.optimizers.optimizer import ParameterGroup, build_optimizer, parameter_groups
from pretrain.optimizers.pieces import held_pieces
from pretrain.precision import gradient_settings, resolve_gradient_precision, resolve_precision
from pretrain.ranks.world import World
from pretrain.rate_rules import warn_of_large_batch
from pretrain.schedule import Hyperparameters
from pretrain.tasks.base import Task, TaskModule
from pretrain.transfers import Reading

DEFAULT_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own default; buckets are never made larger than this, and no larger than the model."""
OVERLAPPED_BUCKET_ELEMENTS = 50_000_000
"""Buckets of stages 1 and 2 on an accelerator: the first is on its way while backward fills the second, so they must be
small against the model, and at 100 MB and more they still use the whole network."""

OWNED = {
    "optimizer": "optimizer.name",
    "scheduler": "schedule",
    "fp16": "engine.precision",
    "amp": "engine.precision",
    "bf16.enabled": "engine.precision",
    "gradient_clipping": "optimizer.clip",
    "train_batch_size": "batch.size",
    "train_micro_batch_size_per_gpu": "batch.micro_size",
    "gradient_accumulation_steps": "batch.micro_size",
    "zero_optimization.stage": "engine.zero_stage",
}
"""Settings of DeepSpeed that a field of ours decides: with another value there the two would contradict each other."""


def accumulation_steps(config: TrainConfig, world_size: int) -> int:
    """Micro-batches per rank and step, of the largest step where `batch.ramp` makes some larger than others.

    Raises:
        ConfigurationError: a global batch cannot be divided among the ranks; says which sizes could.
    """
    per_pass = config.batch.micro_size * world_size
    for first, asked in config.batch.sizes:
        if asked % per_pass:
            lower = asked // per_pass * per_pass
            nearest = [size for size in (lower, lower + per_pass) if size > 0]
            raise ConfigurationError(
                f"batch.{'ramp: ' if first else 'size '}{asked} cannot be divided into micro-batches of "
                f"{config.batch.micro_size} on {world_size} ranks; possible sizes near it: "
                f"{', '.join(map(str, nearest))}"
            )
    return config.batch.largest // per_pass


def engine_at_stage(engine: EngineConfig, stage: int) -> EngineConfig:
    """The same engine at another ZeRO stage, without what this stage does not have: offloading, a type of gradients."""
    offload = replace(
        engine.offload,
        optimizer=engine.offload.optimizer if stage else "none",
        parameters=engine.offload.parameters if stage == 3 else "none",
    )
    gradients = engine.gradient_precision
    if stage != engine.zero_stage and not (stage and gradients == "bf16"):
        gradients = "auto"  # which is fp32 where that stage can
    return replace(engine, zero_stage=stage, offload=offload, gradient_precision=gradients)  # type: ignore[arg-type]


def deepspeed_config(
    config: TrainConfig, world_size: int, parameters: int, accelerated: bool | None = None
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run.

    Args:
        config: the run.
        world_size: ranks.
        parameters: trained ones.
        accelerated: whether ranks have an accelerator; None asks this machine.
    """
    engine = config.engine
    if accelerated is None:
        accelerated = get_accelerator().device_name() != "cpu"
    overlapped = accelerated and engine.zero_stage in (1, 2)
    largest = OVERLAPPED_BUCKET_ELEMENTS if overlapped else DEFAULT_BUCKET_ELEMENTS
    bucket = min(largest, -(-parameters // 8) * 8)  # ZeRO wants an even number
    zero: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if overlapped:
        zero["overlap_comm"] = True
    if engine.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if engine.offload.optimizer != "none":
        zero["offload_optimizer"] = {"device": engine.offload.optimizer, "pin_memory": True}
    if engine.offload.parameters != "none":
        zero["offload_param"] = {"device": engine.offload.parameters, "pin_memory": True}
    accumulation, precision = accumulation_steps(config, world_size), resolve_precision(config)
    gradients = resolve_gradient_precision(config, accumulation * world_size)
    derived: dict[str, Any] = {
        "train_batch_size": config.batch.largest,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,  # `Engine` clips: DeepSpeed would wait for the norm once per parameter group
        "steps_per_print": 2**62,  # our telemetry prints
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice per micro-batch
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's fused AdamW is not on DeepSpeed's list
        "zero_force_ds_cpu_optimizer": False,
    }
    derived |= gradient_settings(precision, gradients, engine.zero_stage)
    for path, ours in OWNED.items():
        if _is_set(engine.deepspeed, path):
            raise ConfigurationError(
                f"engine.deepspeed sets {path}, which follows from {ours}; leave it out and set that"
            )
    return _merge(derived, engine.deepspeed)


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` over `base`, mapping by mapping."""
    merged = copy.deepcopy(dict(base))
    for key, value in override.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _is_set(given: Any, path: str) -> bool:
    name, _, rest = path.partition(".")
    return isinstance(given, Mapping) and name in given and (not rest or _is_set(given[name], rest))


class Engine:
    """A DeepSpeed engine around a task's model, with the update guarded against non-finite gradients."""

    def __init__(self, config: TrainConfig, task: Task, world: World) -> None:
        # DeepSpeed reports its whole configuration at INFO; the step-0 audit says what matters in one table.
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        sharded = config.engine.zero_stage == 3
        model = build_for_partition(task, config.seed, world) if sharded else task.build_model(config.seed)
        task.prepare_model(model, config.engine.activation_checkpointing, config.engine.compile is True)
        self.groups: list[ParameterGroup] = parameter_groups(
            model, task.undecayed_parameters(model), config.optimizer, task.learning_rate_factors(model)
        )
        self.parameters = sum(p.numel() for group in self.groups for p in group.parameters)
        self.peak_lr = self._peak_lr(config, task)
        self.task, self.world, self.stage = task, world, config.engine.zero_stage
        self._settings = config.optimizer
        self.deepspeed_config = deepspeed_config(config, world.size, self.parameters)
        optimizer = self._optimizer(config, model)
        if sharded:
            partition(model, world, self.deepspeed_config)
        with redirect_stdout(StringIO()):  # BF16_Optimizer prints the memory of the machine for every group
            self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
                model=TaskModule(task, model),
                optimizer=optimizer,
                config=self.deepspeed_config,
                dist_init_required=False,
            )
        inner = optimizer.optimizer if isinstance(optimizer, MasterWeights) else optimizer
        if isinstance(inner, Muon):
            inner.place(held_pieces(self), world)
        self._norm: Reading | None = None
        self._hook = optimizer.register_step_pre_hook(self._before_update) if self.stage else None
        self.peaks = [{name: group[name] for name in ("lr", "weight_decay")} for group in self.optimizer.param_groups]
        """Of every group, what schedules multiply."""

    def _optimizer(self, config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
        build = partial(build_optimizer, config=config.optimizer, lr=self.peak_lr)
        if self.stage or resolve_precision(config) == "fp32":
            return build(self.groups)
        round_model(model, self.world.device)
        return MasterWeights(self.groups, build)

    @staticmethod
    def _peak_lr(config: TrainConfig, task: Task) -> float:
        batch_units = config.batch.largest * task.units_per_sample()[0]
        warn_of_large_batch(batch_units)
        optimizer, width = config.optimizer, task.residual_width()
        if optimizer.lr is not None:
            return optimizer.lr
        if optimizer.name != "muon":
            return optimizer.batch_rule.learning_rate(batch_units)
        if width is None:
            raise ConfigurationError("optimizer.lr is null, but this task's model has no width for the rule; set it")
        return optimizer.width_rule.learning_rate(width)

    @property
    def model(self) -> nn.Module:
        """The task's own model (its parameters are partitioned under ZeRO-3)."""
        return self.wrapped.module.model

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step; of the largest step, until `accumulate` says otherwise."""
        return self.wrapped.gradient_accumulation_steps()

    def accumulate(self, micro_batches: int) -> None:
        """From the next step on, each has so many micro-batches on every rank, and its gradient is their mean."""
        if micro_batches == self.accumulation:
            return
        per_pass = self.wrapped.train_micro_batch_size_per_gpu() * self.wrapped.dp_world_size
        self.wrapped.set_train_batch_size(micro_batches * per_pass)
        # DeepSpeed ends a step where this count, which it never resets, is a multiple of their number.
        self.wrapped.micro_steps = 0

    @property
    def layout(self) -> str:
        """How the engine's files hold the state, beside stage and ranks: by which class, of which type, and where.

        Files of another layout fit only after they were put together: DeepSpeed would take the weights that the model
        computed with for the masters, whole momenta, as its own Muon has written them, for pieces of them, or one
        optimizer's state for another's.
        """
        device = self.deepspeed_config["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
        weights = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        momenta = ", momenta cut like weights" if any(group.use_muon for group in self.groups) else ""
        return f"{type(self.wrapped.optimizer).__name__}, weights in {weights}, optimizer offloaded: {device}{momenta}"

    def set_hyperparameters(self, now: Hyperparameters) -> dict[str, float]:
        """Sets every group's; what a checkpoint has brought counts no more.

        Returns:
            For the log: AdamW's learning rate (before the task's own factors), and what else moves in this run.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"], group["weight_decay"] = now.rate * peak["lr"], now.decay * peak["weight_decay"]
            if group.get("use_muon"):
                group["momentum"] = now.momentum
        settings, moving = self._settings, {"lr": now.rate * self.peak_lr}
        if settings.weight_decay_schedule != "constant":
            moving["weight_decay"] = now.decay * settings.weight_decay
        if settings.name == "muon" and settings.muon_momentum_warmup_steps:
            moving["muon_momentum"] = now.momentum
        return moving

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of one micro-batch; on the last one gradients are averaged over ranks."""
        self.wrapped.backward(loss)

    def update(self) -> bool:
        """Ends a micro-batch; on the last one of a step applies the optimizer. False if the step was skipped.

        ZeRO skips steps with non-finite gradients itself (its overflow check). Without ZeRO the gradients are
        looked at here and dropped, so that the optimizer sees none and nothing moves.
        """
        if not self.wrapped.is_gradient_accumulation_boundary():
            self.wrapped.step()
            return True
        self._norm = None
        if self.stage:
            self.wrapped.step()  # comes by `_before_update`, unless it finds the norm not finite
            return not self.wrapped.optimizer.overflow
        with_gradient = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
        self._norm = Reading(norm.reshape(1))
        finite = math.isfinite(self.gradient_norm)
        if not finite:
            for parameter in with_gradient:
                parameter.grad = None
        elif self._settings.clip:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, self._settings.clip, norm)
        self.wrapped.step()
        return finite

    @property
    def gradient_norm(self) -> float:
        """Global gradient norm of the last update, before clipping and, with Muon, before momentum.

        Infinite where ZeRO has skipped the update. Asking may wait for the device.
        """
        return math.inf if self._norm is None else self._norm.values()[0]

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """ZeRO is about to update one parameter group: takes the norm on its way to the host, and clips by it.

        The arithmetic is DeepSpeed's own; but it asks the device again for every group whether the norm is finite.
        """
        norm = self.wrapped.optimizer._global_grad_norm
        if self._norm is None:
            self._norm = Reading(norm.reshape(1))
        if not self._settings.clip:
            return
        factor = 1.0 / torch.clamp((norm + 1e-6) / self._settings.clip, min=1.0)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def state_dict(self) -> dict[str, Tensor] | None:
        """Whole weights of the task's model on rank 0, on the host; None elsewhere. Collective: call on every rank.

        Each tensor owns its memory, tied ones together: whoever writes them has no reason to copy them once more.
        """
        if self.stage == 3:
            whole = self.wrapped._zero3_consolidated_16bit_state_dict()
        else:
            whole = self.wrapped.module.state_dict() if self.world.is_main else None
        if whole is None or not self.world.is_main:
            return None
        copies: dict[tuple[int, torch.Size], Tensor] = {}
        for tensor in whole.values():
            key = (tensor.data_ptr(), tensor.shape)
            if key not in copies:
                copies[key] = _on_host(tensor)
        return {name.removeprefix("model."): copies[tensor.data_ptr(), tensor.shape] for name, tensor in whole.items()}

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The module whose forward pass is the task's loss, frozen: evaluation mode, for the body of a `with`."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield self.wrapped
        finally:
            self.model.train(was_training)

    @contextmanager
    def keeping_hyperparameters(self) -> Iterator[None]:
        """For the body of a `with` that loads a checkpoint: momenta, betas and decay stay those of the configuration.

        torch takes what the file has of them, so that the same change would count at another stage and not at the same.
        """
        own = [{name: group[name] for name in group if name != "params"} for group in self.optimizer.param_groups]
        yield
        for group, kept in zip(self.optimizer.param_groups, own, strict=True):
            group.update(kept)

    def close(self) -> None:
        """Releases hooks and buffers, so that another engine can be built in this process."""
        if self._hook is not None:
            self._hook.remove()
        self.wrapped.destroy()
        if self.stage == 3:
            _forget_module()


def _on_host(tensor: Tensor) -> Tensor:
    """The tensor on the host, in memory of its own: under ZeRO parameters are views of one large vector."""
    host = tensor.detach().to("cpu")
    return host if host.untyped_storage().nbytes() == host.nbytes else host.clone()


def _forget_module() -> None:
    """Empties what DeepSpeed keeps of a module at stage 3 beyond its engine's end, and with it all parameters.

    That is a global stack of modules, and a cache of a method, inside its decorator.
    """
    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
