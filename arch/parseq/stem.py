"""Patches by small convolutions in place of one large one, before the ViT blocks.

A narrow ViT that starts from 8 x 8 patches has to learn edges and strokes patch by patch; with convolutions it needs a
third of the images to read its first letters (docs/results/ocr_scaling.md).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def stem_stages(patch: tuple[int, int], width: int) -> list[tuple[int, int, tuple[int, int]]]:
    """(channels in, channels out, stride) of every 3 x 3 convolution.

    For each halving of a patch's longer side one that halves and one that does not, but for the last; channels double
    up to `width`.
    """
    halvings = max(patch).bit_length() - 1
    stages: list[tuple[int, int, tuple[int, int]]] = []
    channels = 3
    for number in range(1, halvings + 1):
        wide = width >> (halvings - number)
        down, across = (2 if side >> number else 1 for side in patch)
        stages.append((channels, wide, (down, across)))
        if number < halvings:
            stages.append((wide, wide, (1, 1)))
        channels = wide
    return stages


class ConvolutionStem(nn.Module):
    """What timm's ViT takes as its `embed_layer`: [B, 3, H, W] -> convolutions -> 1 x 1 convolution -> [B, M, d].

    After each 3 x 3 convolution every channel is normalised over its image, then ReLU: how bright a word is, and how
    strong its contrast, is gone. Images share no statistics, so the others of a batch, and other ranks, change nothing.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: tuple[int, int], embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.num_patches = (img_size[0] // patch_size[0]) * (img_size[1] // patch_size[1])
        layers: list[nn.Module] = []
        for channels, wide, stride in stem_stages(patch_size, embed_dim):
            layers += [nn.Conv2d(channels, wide, 3, stride, 1, bias=False), nn.GroupNorm(wide, wide), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Patches [B, M, d]."""
        return self.layers(images_B3HW).flatten(2).transpose(1, 2)
