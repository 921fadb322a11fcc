"""What a narrower residual stream does to RMSNorm (docs/methods/tiny_lm.md: slicing).

RMSNorm divides by the root mean square over the channels that it sees. Over the kept channels alone that is another
number. By default norm weights stay as they are; `rescale_norm` multiplies each by RMS(kept) / RMS(all), so that
on average a kept channel leaves the norm with the size that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..pangu_pi import PanguPiForCausalLM
from .measure import batches


@torch.no_grad()
def norm_ratios(
    model: PanguPiForCausalLM, kept: torch.Tensor, rows_NS: torch.Tensor, batch: int = 4
) -> dict[str, float]:
    """RMS over the kept channels divided by RMS over all, for every norm, by the name of its weight.

    The ratio is taken token by token and then averaged: a few tokens that attention uses as a sink are hundreds of
    times larger than the others, and would decide a ratio of averages alone.

    Args:
        model: the model before its residual channels are cut.
        kept: indices of the channels that stay.
        rows_NS: calibration rows.
        batch: rows per forward pass.
    """
    kept = kept.to(model.device)
    kind = type(model.model.norm)
    sums: dict[str, float] = {}

    def record(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, inputs: Any) -> None:
            squares = inputs[0].float().square()
            ratio = (squares[..., kept].mean(-1) / squares.mean(-1).clamp(min=1e-30)).sqrt()
            sums[name] = sums.get(name, 0.0) + float(ratio.sum())

        return hook

    hooks = [
        module.register_forward_pre_hook(record(f"{name}.weight"))
        for name, module in model.named_modules()
        if type(module) is kind  # not those of queries and keys, which see no residual channel
    ]
    try:
        for ids_BS in batches(rows_NS, batch, model):
            model.model(input_ids=ids_BS, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: total / rows_NS.numel() for name, total in sums.items()}


__all__ = ["norm_ratios"]
