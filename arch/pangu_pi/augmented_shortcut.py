"""The augmented shortcut (PanGu-pi Eq. 4-5, bottleneck form): a cheap nonlinear path beside attention.

    T_i(h) = sigma(h W_down,i) W_up,i        W_down,i: [D, D/r],  W_up,i: [D/r, D],  no bias
    output = sum of T_i(h) over i = 1..T

A sum of T bottlenecks is one bottleneck of T times the width (the activation is element-wise), so the T pairs are kept
as one pair of matrices: the same function, the same T * 2 D^2 / r parameters, two matrix products instead of 2T.
Token-wise: no cache entry, no mixing of positions. Cost 2 T D^2 / r multiply-adds a token.

Shape suffixes: B batch, S sequence, D hidden width, K = T * D / r bottleneck units.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN

DRAWN_STD = 0.02  # of the matrices that do not start at zero (AugViT's)


class AugmentedShortcut(nn.Module):
    """Sum of `count` bottleneck shortcuts `activation(h W_down) W_up`.

    Both matrices are [K, D], one row per bottleneck unit: what the unit reads and what it writes. (As an `nn.Linear`,
    W_up would be [D, K], and the tall, narrow products of its backward pass are several times slower.)

    Args:
        hidden_size: D.
        count: T >= 1.
        reduction: r, which divides D.
        activation: a name of transformers' `ACT2FN`.
        init: `"zero"` starts W_up at 0 and W_down at N(0, 0.02^2); `"trunc_normal"` draws both.
        init_seed: seed of what the initialisation draws.
    """

    def __init__(
        self,
        hidden_size: int,
        count: int,
        reduction: int,
        activation: str = "gelu",
        init: str = "zero",
        init_seed: int = 0,
    ) -> None:
        super().__init__()
        units = count * (hidden_size // reduction)
        self.hidden_size, self.units = hidden_size, units  # while the weights are cut up, they have no shape
        self.down_weight = nn.Parameter(torch.empty(units, hidden_size))
        self.up_weight = nn.Parameter(torch.empty(units, hidden_size))
        self.act_fn = ACT2FN[activation]
        self.init, self.init_seed = init, init_seed

    def forward(self, h_BSD: torch.Tensor) -> torch.Tensor:
        """Map [B, S, D] to [B, S, D]."""
        return torch.matmul(self.act_fn(nn.functional.linear(h_BSD, self.down_weight)), self.up_weight)

    def initial_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """W_down^T and W_up at step 0, [K, D] each."""
        generator = torch.Generator().manual_seed(self.init_seed)
        down_KD, up_KD = (torch.zeros(self.down_weight.shape, device="cpu") for _ in range(2))
        if self.init == "zero":
            nn.init.normal_(down_KD, std=DRAWN_STD, generator=generator)
        else:
            nn.init.trunc_normal_(down_KD, std=DRAWN_STD, generator=generator)
            nn.init.trunc_normal_(up_KD, std=DRAWN_STD, generator=generator)
        return down_KD, up_KD

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, units={self.units}"


__all__ = ["AugmentedShortcut"]
