"""What a visual-sentence model costs, by arithmetic: trainable and exported parameters, FLOPs to make one image.

The conventions are those of `arch.pangu_pi.accounting` (a multiply-add is two FLOPs, look-ups are free); see each
function.
"""

from __future__ import annotations

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.accounting import count_flops, count_parameters


def trainable_parameters(config: PanguPiConfig, code_features: int) -> int:
    """Parameters that train: the projection [C, D] instead of a table; the codebook is frozen and does not count.

    Args:
        config: shape of the model, its head untied.
        code_features: C, features of a code (64 for the VQGAN of the paper).
    """
    parameters = count_parameters(config)
    return parameters.total - parameters.embedding + code_features * config.hidden_size


def exported_parameters(config: PanguPiConfig) -> int:
    """Parameters of the model as it leaves, with the folded table [V, D]."""
    return count_parameters(config).total


def image_flops(config: PanguPiConfig, tokens_per_image: int = 256, images: int = 8) -> int:
    """FLOPs to make the last of `images` images by prefill and cached steps (docs/methods/delvm.md: parameters).

    The first new token comes from the prefill, so images * n - 1 tokens pass through the blocks and the head.
    Attention scores are not counted: 2 * (8 * 256 - 1) * (L * (4 D^2 + 3 D F) + V * D) for a LLaMA.
    """
    flops = count_flops(config, images * tokens_per_image)
    return (images * tokens_per_image - 1) * (flops.linear + flops.head + flops.series + flops.shortcut)


__all__ = ["exported_parameters", "image_flops", "trainable_parameters"]
