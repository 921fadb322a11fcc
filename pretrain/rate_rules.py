"""Peak learning rates of models and batches that were not tuned, from those that were.

AdamW alone     rises with the square root of the batch (docs/methods/tiny_lm.md: batch and rate)
beside Muon     the rate of tables, head and vectors falls with the square root of the width; batches of 1,000 to
                4,000 tokens made no difference (docs/recipe.md)
Muon itself     one rate for all widths: its update has the same spectral norm in all of them (`muon_lr`)
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from pretrain.errors import ConfigurationError

logger = logging.getLogger(__name__)

BATCH_WARNING_TOKENS = 4_000_000
"""From this global batch on convergence per token degrades (docs/methods/tiny_lm.md: batch and rate)."""


@dataclass(frozen=True)
class BatchRule:
    """peak = anchor_lr * (batch_tokens / anchor_batch_tokens) ** exponent."""

    anchor_lr: float = 2e-4
    """Learning rate at the anchor batch (project choice: 2e-4)."""
    anchor_batch_tokens: int = 2_000_000
    """Tokens in the anchor's global batch (project choice: 2 M)."""
    exponent: float = 0.5
    """0.5 is the square-root rule that the paper recommends; 0 and 1 are there for the ablation."""

    def learning_rate(self, batch_tokens: int) -> float:
        """Peak learning rate for a global batch of `batch_tokens`."""
        scale = _power(batch_tokens / self.anchor_batch_tokens, self.exponent)
        return _usable("batch_rule", self.anchor_lr * scale, f"a batch of {batch_tokens:,}")


def warn_of_large_batch(batch_tokens: int) -> None:
    """Warns at 4 M tokens and above, whatever the learning rate."""
    if batch_tokens >= BATCH_WARNING_TOKENS:
        logger.warning(
            "global batch of %s tokens: at 4 M tokens and above convergence per token degrades; lower batch.size",
            f"{batch_tokens:,}",
        )


@dataclass(frozen=True)
class WidthRule:
    """peak = anchor_lr * (width / anchor_width) ** exponent, for what AdamW updates beside Muon."""

    anchor_lr: float = 2e-2
    """Learning rate at the anchor width (measured: docs/recipe.md)."""
    anchor_width: int = 128
    """Width of the model that it was measured with."""
    exponent: float = -0.5
    """The exponent that nanochat (github.com/karpathy/nanochat) takes for embeddings and heads beside Muon."""

    def learning_rate(self, width: int) -> float:
        """Peak learning rate for a model of `width` channels."""
        scale = _power(width / self.anchor_width, self.exponent)
        return _usable("width_rule", self.anchor_lr * scale, f"a width of {width:,}")


def _power(ratio: float, exponent: float) -> float:
    try:
        return ratio**exponent
    except (OverflowError, ZeroDivisionError):
        return math.inf


def _usable(rule: str, rate: float, size: str) -> float:
    if not 0 < rate < math.inf:
        raise ConfigurationError(
            f"optimizer.lr is null, and optimizer.{rule} makes {rate:g} of {size}; set optimizer.lr, or other anchors "
            "or another exponent of the rule"
        )
    return rate
