"""The sizes of a PARSeq, and what follows from them by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from arch.parseq.recogniser_config import RecogniserConfig
from arch.parseq.stem import stem_stages
from common.config_file import ModelConfigError, load_dataclass

CHOICES = {"initialisation": ("released", "narrow"), "stem": ("patch", "convolution")}


@dataclass(frozen=True)
class ParseqConfig(RecogniserConfig):
    """A PARSeq. The defaults are PARSeq-S with the 94 printable ASCII characters."""

    encoder_layers: int = 12
    """ViT blocks."""
    encoder_heads: int = 6
    """Attention heads of a ViT block."""
    encoder_mlp_ratio: int = 4
    """Hidden size of a ViT block's feed-forward layer, in widths."""
    image_height: int = 32
    """Pixels."""
    image_width: int = 128
    """Pixels; the aspect ratio of a word is not kept."""
    patch_height: int = 4
    """Pixels of a ViT patch."""
    patch_width: int = 8
    """Pixels of a ViT patch."""
    stem: str = "patch"
    """patch: one convolution as large as a patch, as published. convolution: several small ones, see stem.py."""
    initialisation: str = "released"
    """released: matrices by 0.02, as published for a width of 384. narrow: matrices of the blocks by 1/sqrt(inputs) and
    positions by 0.2; at widths below 100 signals of 0.02 drown in the residual stream, and learning starts late."""

    heads: ClassVar[dict[str, str]] = {"encoder_heads": "width", "decoder_heads": "width"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, choices in CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                raise ModelConfigError(f"{field}: expected one of {', '.join(choices)}, found {value!r}")
        for side in ("height", "width"):
            image, patch = getattr(self, f"image_{side}"), getattr(self, f"patch_{side}")
            if image % patch:
                raise ModelConfigError(f"patch_{side}: image_{side} {image} is not a multiple of {patch}")
            if self.stem == "convolution" and (patch & (patch - 1) or self.width % max(self.patch)):
                raise ModelConfigError(f"stem: patch_{side} {patch} must be a power of two that divides width")

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.image_height, self.image_width

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return self.patch_height, self.patch_width

    @property
    def image_tokens(self) -> int:
        """M, length of the encoder's output."""
        return (self.image_height // self.patch_height) * (self.image_width // self.patch_width)

    def forward_flops(self, length: int, orderings: int) -> float:
        """Floating-point operations of matrix products in one forward pass of one image.

        Args:
            length: L, decoder positions.
            orderings: K; the encoder and the keys of the image are computed once for all of them.
        """
        d, m = self.width, self.image_tokens
        patch = 3 * self.patch_height * self.patch_width * d * m
        stem = self._stem_products() if self.stem == "convolution" else patch
        block = m * (4 + 2 * self.encoder_mlp_ratio) * d * d + 2 * m * m * d
        return 2.0 * (stem + self.encoder_layers * block + self.decoder_products(length, orderings, m))

    def _stem_products(self) -> int:
        """Products of the stem's convolutions on one image."""
        total, (height, width) = 0, self.image_shape
        for channels, wide, (down, across) in stem_stages(self.patch, self.width):
            height, width = height // down, width // across
            total += 9 * channels * wide * height * width
        return total + self.width**2 * self.image_tokens

    def training_flops(self, length: int, orderings: int) -> float:
        return 3 * self.forward_flops(length, orderings)


def load_parseq_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ParseqConfig:
    """Reads a YAML of ParseqConfig fields (configs/parseq/models/*.yaml); errors as `load_dataclass` raises them."""
    return load_dataclass(ParseqConfig, path, overrides)
