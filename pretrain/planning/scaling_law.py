"""What loss a budget buys, by published laws: parameters, tokens, and what repeated text is worth.

    L(N, D) = E + A / N^a + B / D^b                                Hoffmann et al. 2022 (arXiv 2203.15556), eq. 10
    D_eff   = U + U R* (1 - exp(-R / R*)),  R = D / U - 1          Muennighoff et al. 2023 (arXiv 2305.16264), eq. 5

N parameters, D tokens that are trained on, U distinct ones. Two fits of L are kept: the authors' own, and the one that
Besiroglu et al. 2024 (arXiv 2404.10102) made of the same runs; what lies between them is the range that is expected.
Both speak of English web text in the authors' tokenizer, of 70 M to 16 B parameters and 5 B to 500 B tokens. Elsewhere
the *place* of the optimum is of more use than the loss itself.

The batch and the learning rate that suit C FLOPs outside of embeddings and head are

    batch = 0.2920 C^0.3271 tokens,  rate = 0.3118 C^-0.1250       DeepSeek LLM (arXiv 2401.02954), eq. 1

fitted from 1e17 to 2e19 FLOPs and checked at 1e20, for AdamW with betas 0.9 and 0.95, decay 0.1 and clipping at 1, this
project's defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

REPETITION_DECAY = 15.39
"""R*: repetitions after which another one is worth 1/e of the first (arXiv 2305.16264, section 4)."""
FREE_PASSES = 4
"""Passes over the same text that are worth nearly as much as fresh text (same paper, abstract)."""
FITTED_PARAMETERS, FITTED_TOKENS = (70e6, 16e9), (5e9, 500e9)
"""Where the runs lie that the laws were fitted to."""
FITTED_FLOPS = (1e17, 1e20)
"""Where the runs lie that batch and rate were fitted to, and to which their authors checked them."""


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) in nats per token."""

    source: str
    """Where the numbers are from."""
    floor: float
    """E, what no model gets below."""
    size: float
    """A."""
    size_exponent: float
    """a."""
    data: float
    """B."""
    data_exponent: float
    """b."""

    def __call__(self, parameters: float, tokens: float) -> float:
        """The loss of a model with `parameters` after `tokens` distinct tokens."""
        return self.floor + self.size / parameters**self.size_exponent + self.data / tokens**self.data_exponent


HOFFMANN = LossLaw("arXiv 2203.15556", 1.69, 406.4, 0.34, 410.7, 0.28)
BESIROGLU = LossLaw("arXiv 2404.10102", 1.8172, 482.01, 0.3478, 2085.43, 0.3658)
"""The fit that decides; its optimum has about 20 tokens a parameter, as the authors' other two methods."""


def effective_tokens(trained: float, distinct: float | None) -> float:
    """The number of fresh tokens that `trained` ones are worth when only `distinct` exist; None: as many as needed."""
    if distinct is None or trained <= distinct:
        return trained
    repetitions = trained / distinct - 1
    return distinct * (1 + REPETITION_DECAY * (1 - math.exp(-repetitions / REPETITION_DECAY)))


def expected_loss(parameters: float, trained: float, distinct: float | None = None) -> float:
    """The loss by the fit that decides, in nats per token."""
    return BESIROGLU(parameters, effective_tokens(trained, distinct))


def loss_range(parameters: float, trained: float, distinct: float | None = None) -> tuple[float, float]:
    """The lower and the higher loss of the two fits, in nats per token."""
    tokens = effective_tokens(trained, distinct)
    low, high = sorted(law(parameters, tokens) for law in (HOFFMANN, BESIROGLU))
    return low, high


def batch_tokens(flops: float) -> float:
    """Tokens of a global batch for a run of `flops` outside of embeddings and head."""
    return 0.2920 * flops**0.3271


def learning_rate(flops: float) -> float:
    """AdamW's peak learning rate for a run of `flops` outside of embeddings and head, at the batch above."""
    return 0.3118 * flops**-0.1250
