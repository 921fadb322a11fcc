"""In which type weights are held, gradients are summed, and matrix products are computed.

    engine.precision            bf16: the model computes in bf16, the optimizer updates fp32 master weights
    engine.gradient_precision   fp32: the bf16 gradients of micro-batches are added up, and averaged over ranks, in fp32

Every addition in bf16 rounds the sum to 8 bits: 16 micro-batches are off by 0.5 % of the gradient, 256 by 1.9 %. What
DeepSpeed 0.19 makes of it, by stage (measured: tests/pretrain/test_precision.py):

    0      own masters and fp32 sums (master_weights.py)
    1      BF16_Optimizer: fp32 sums of all parameters on every rank, averaged at the end of a step
           with the optimizer on the host DeepSpeedZeroOptimizer, whose sums are of the same size
    2, 3   each micro-batch is averaged in fp32, and added to an fp32 sum of the rank's part
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from deepspeed.accelerator import get_accelerator

from pretrain.config import TrainConfig
from pretrain.errors import ConfigurationError


def usual_precision() -> Literal["fp32", "bf16"]:
    """bf16 on an accelerator that has it, fp32 on an older one and on a CPU."""
    accelerator = get_accelerator()
    return "bf16" if accelerator.device_name() != "cpu" and accelerator.is_bf16_supported() else "fp32"


def resolve_precision(config: TrainConfig) -> Literal["fp32", "bf16"]:
    """The usual precision, unless the configuration says otherwise.

    Raises:
        ConfigurationError: it asks for bf16, and the device has none.
    """
    precision = config.engine.precision
    if precision == "bf16" and not get_accelerator().is_bf16_supported():
        raise ConfigurationError(
            f"engine.precision bf16: this {get_accelerator().device_name()} device has no bf16; use fp32, or auto"
        )
    return usual_precision() if precision == "auto" else precision


def resolve_gradient_precision(config: TrainConfig, micro_batches: int) -> str:
    """The type in which gradients are summed: fp32 or bf16.

    Args:
        config: the run.
        micro_batches: of a step, those of all ranks together.

    Raises:
        ConfigurationError: the engine cannot do what `engine.gradient_precision` asks for.
    """
    asked, stage = config.engine.gradient_precision, config.engine.zero_stage
    if resolve_precision(config) == "fp32":
        if asked == "bf16":
            raise ConfigurationError("engine.gradient_precision bf16 needs engine.precision bf16")
        return "fp32"
    if stage == 0:
        if asked == "bf16":
            raise ConfigurationError(
                "engine.gradient_precision bf16 needs ZeRO; engine.zero_stage 0 sums gradients in fp32"
            )
        return "fp32"
    if asked == "auto":
        return "fp32" if micro_batches > 1 else "bf16"
    return asked


def gradient_settings(precision: str, gradients: str, stage: int) -> dict[str, Any]:
    """What DeepSpeed is told about types.

    Args:
        precision: of the weights.
        gradients: of the sums of gradients.
        stage: ZeRO stage; without ZeRO DeepSpeed sees fp32 only.
    """
    mixed = precision == "bf16" and stage > 0
    settings: dict[str, Any] = {"bf16": {"enabled": mixed}}
    if mixed and gradients == "fp32":
        settings |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
        if stage == 1:  # each bf16 gradient is freed as soon as it has been added
            settings["bf16"]["immediate_grad_update"] = True
    return settings


def describe_gradients(wrapped: Any) -> str:
    """What a DeepSpeed engine really sums and averages gradients in, for the audit."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    summed, averaged = wrapped.get_data_types()[1], wrapped.communication_data_type
    return f"summed over micro-batches in {names[summed]}, averaged over ranks in {names[averaged]}"
