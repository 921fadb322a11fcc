"""How different two images look to a frozen classifier: the distance of unit-length features at several depths.

    d(x, y) = sum_l mean_(h, w) | f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)| |^2

That is LPIPS (arXiv 1801.03924) with equal weights, on torchvision's MobileNetV2.

Shapes: B images, S pixels of a side, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config_file import ModelConfigError

TAPS = (1, 3, 6, 13)
"""Layers of MobileNetV2's `features` that are compared: strides 2, 4, 8 and 16."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, which the weights were trained on."""


class PerceptualDistance(nn.Module):
    """Frozen features of MobileNetV2.

    Args:
        weights: a state dict with torchvision's names, as torchvision's own `mobilenet_v2-*.pth` holds it.

    Raises:
        ModelConfigError: the file is missing, damaged or of another network.
    """

    def __init__(self, weights: str | Path) -> None:
        from torchvision.models import mobilenet_v2

        super().__init__()
        network = mobilenet_v2(weights=None)
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises many unrelated types for a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelConfigError(
                f"{weights}: no weights of torchvision's mobilenet_v2 that can be read ({reason})"
            ) from None
        self.features = network.features[: TAPS[-1] + 1]
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stays in evaluation mode: its batch norms are frozen."""
        return super().train(False)

    def forward(self, images_B3SS: Tensor, others_B3SS: Tensor) -> Tensor:
        """Distances [B] of images in [0, 1]; gradients flow to both."""
        distances_B = images_B3SS.new_zeros(len(images_B3SS))
        hidden = (torch.cat([images_B3SS, others_B3SS]) - self.mean) / self.std
        for number, layer in enumerate(self.features):
            hidden = layer(hidden)
            if number in TAPS:
                first_BCHW, second_BCHW = F.normalize(hidden, dim=1).chunk(2)
                distances_B = distances_B + (first_BCHW - second_BCHW).square().sum(dim=1).mean(dim=(1, 2))
        return distances_B
