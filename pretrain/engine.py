"""The DeepSpeed engine: its configuration derived from ours, and the few questions the loop asks it.

What is derived: micro-batch and accumulation from the global batch, ZeRO stage and offload, precision from the device,
bucket sizes from the model (DeepSpeed's defaults reserve gigabytes that a small model cannot fill). The raw mapping
`engine.deepspeed` is merged last and wins.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import Tensor, nn

from pretrain.config import EngineConfig, TrainConfig
from pretrain.distributed import World
from pretrain.errors import ConfigurationError
from pretrain.optimizer import ParameterGroup, build_optimizer, parameter_groups
from pretrain.schedule import warn_of_large_batch
from pretrain.tasks.base import Task, TaskModule

DEFAULT_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own default; buckets are never made larger than this, and no larger than the model."""


def accumulation_steps(config: TrainConfig, world_size: int) -> int:
    """Micro-batches per rank and step.

    Raises:
        ConfigurationError: the global batch cannot be divided among the ranks; says which sizes could.
    """
    per_pass = config.batch.micro_size * world_size
    if config.batch.size % per_pass:
        lower = config.batch.size // per_pass * per_pass
        nearest = [size for size in (lower, lower + per_pass) if size > 0]
        raise ConfigurationError(
            f"batch.size {config.batch.size} cannot be divided into micro-batches of {config.batch.micro_size} on "
            f"{world_size} ranks; possible sizes near it: {', '.join(map(str, nearest))}"
        )
    return config.batch.size // per_pass


def resolve_precision(config: TrainConfig) -> str:
    """bf16 on an accelerator, fp32 on a CPU, unless the configuration says otherwise.

    Raises:
        ConfigurationError: bf16 without ZeRO, which has no float32 master weights to guard.
    """
    precision = config.engine.precision
    if precision == "auto":
        precision = "fp32" if get_accelerator().device_name() == "cpu" else "bf16"
    if precision == "bf16" and config.engine.zero_stage == 0:
        raise ConfigurationError("engine.zero_stage 0 trains in fp32 only; use stage 1 with bf16")
    return precision


def engine_at_stage(engine: EngineConfig, stage: int) -> EngineConfig:
    """The same engine at another ZeRO stage, without the offloading that this stage does not have."""
    offload = replace(
        engine.offload,
        optimizer=engine.offload.optimizer if stage else "none",
        parameters=engine.offload.parameters if stage == 3 else "none",
    )
    return replace(engine, zero_stage=stage, offload=offload)  # type: ignore[arg-type]


def clip_norm(config: TrainConfig) -> float:
    """Gradient norm to clip to, 0 for none.

    With Muon nothing is clipped: under ZeRO DeepSpeed would clip *after* orthogonalising and so shrink every update to
    that norm, and neither Muon's nor Adam's update depends on the gradient's scale.
    """
    return 0.0 if config.optimizer.name == "muon" else config.optimizer.clip


def deepspeed_config(config: TrainConfig, world_size: int, parameters: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run with `parameters` trainable parameters."""
    engine = config.engine
    bucket = min(DEFAULT_BUCKET_ELEMENTS, -(-parameters // 8) * 8)  # ZeRO wants an even number
    zero: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if engine.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if config.optimizer.name == "muon":
        zero["reduce_scatter"] = False  # Muon orthogonalises whole matrices and so needs whole gradients
    if engine.offload.optimizer != "none":
        zero["offload_optimizer"] = {"device": engine.offload.optimizer, "pin_memory": True}
    if engine.offload.parameters != "none":
        zero["offload_param"] = {"device": engine.offload.parameters, "pin_memory": True}
    derived: dict[str, Any] = {
        "train_batch_size": config.batch.size,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": accumulation_steps(config, world_size),
        "gradient_clipping": clip_norm(config) if engine.zero_stage else 0.0,  # at stage 0 `Engine.update` clips
        "steps_per_print": 2**62,  # our telemetry prints
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's fused AdamW is not on DeepSpeed's list
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": resolve_precision(config) == "bf16"},
    }
    return _merge(derived, engine.deepspeed)


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` over `base`, mapping by mapping."""
    merged = copy.deepcopy(dict(base))
    for key, value in override.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


class Engine:
    """A DeepSpeed engine around a task's model, with the update guarded against non-finite gradients."""

    def __init__(self, config: TrainConfig, task: Task, world: World) -> None:
        # DeepSpeed reports its whole configuration at INFO; the step-0 audit says what matters in one table.
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        model = task.build_model(config.seed)
        task.prepare_model(model, config.engine.activation_checkpointing, config.engine.compile)
        self.groups: list[ParameterGroup] = parameter_groups(
            model, task.undecayed_parameters(model), config.optimizer, task.learning_rate_factors(model)
        )
        self.parameters = sum(p.numel() for group in self.groups for p in group.parameters)
        self.peak_lr = self._peak_lr(config, task)
        self.task, self.world, self.stage = task, world, config.engine.zero_stage
        self._clip = clip_norm(config)
        self.deepspeed_config = deepspeed_config(config, world.size, self.parameters)
        self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
            model=TaskModule(task, model),
            optimizer=build_optimizer(self.groups, config.optimizer, self.peak_lr),
            config=self.deepspeed_config,
            dist_init_required=False,
        )
        self.gradient_norm = float("nan")
        """Global gradient norm of the last update, before clipping (under ZeRO with Muon: of the updates)."""
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]

    @staticmethod
    def _peak_lr(config: TrainConfig, task: Task) -> float:
        batch_units = config.batch.size * task.units_per_sample()[0]
        if config.optimizer.lr is None:
            return config.optimizer.batch_rule.learning_rate(batch_units)
        warn_of_large_batch(batch_units)
        return config.optimizer.lr

    @property
    def model(self) -> nn.Module:
        """The task's own model (its parameters are partitioned under ZeRO-3)."""
        return self.wrapped.module.model

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step."""
        return self.wrapped.gradient_accumulation_steps()

    def set_learning_rate(self, factor: float) -> float:
        """Sets every group to `factor` times its peak; returns AdamW's rate (before the task's own factors)."""
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = factor * peak
        return factor * self.peak_lr

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
        if self.stage:
            self.wrapped.step()
            self.gradient_norm = float(self.wrapped.get_global_grad_norm())
            return not self.wrapped.optimizer.overflow
        with_gradient = [p for p in self.wrapped.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
        self.gradient_norm = float(norm)
        finite = math.isfinite(self.gradient_norm)
        if not finite:
            for parameter in with_gradient:
                parameter.grad = None
        elif self._clip:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, self._clip, norm)
        self.wrapped.step()
        return finite

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

    def close(self) -> None:
        """Releases hooks and buffers, so that another engine can be built in this process."""
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
