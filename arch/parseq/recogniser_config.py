"""What every recogniser with PARSeq's decoder has in common: its sizes, its ids, and how pixels become its input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from common.config_file import ModelConfigError


@dataclass(frozen=True)
class RecogniserConfig(ABC):
    """The decoder's sizes; the defaults are those of PARSeq-S with the 94 printable ASCII characters."""

    width: int = 384
    """d, of the decoder and of the memory that it reads."""
    decoder_layers: int = 1
    """Two-stream blocks. The published sizes B to H fit two better than one; the paper does not say."""
    decoder_heads: int = 12
    """Attention heads of a decoder block."""
    decoder_mlp_ratio: int = 4
    """Hidden size of a decoder block's feed-forward layer, in widths."""
    characters: int = 94
    """Characters that can be predicted."""
    max_length: int = 25
    """T, characters of the longest word."""
    dropout: float = 0.1
    """In the decoder and on its inputs; the encoder has none."""

    pixel_mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    """Of the colours, scaled to [0, 1], that the encoder expects."""
    pixel_deviation: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    """Standard deviation of the same."""
    smallest: ClassVar[dict[str, int]] = {}
    """Smallest value of whole-number fields where it is not 1."""
    heads: ClassVar[dict[str, str]] = {"decoder_heads": "width"}
    """By number of heads, the width that they must divide."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), self.smallest.get(field.name, 1)
            if field.type == "int" and (not isinstance(value, int) or value < least):
                raise ModelConfigError(f"{field.name}: must be a whole number of at least {least}, found {value!r}")
        if not 0 <= self.dropout < 1:
            raise ModelConfigError(f"dropout: must be at least 0 and below 1, found {self.dropout}")
        for heads, width in self.heads.items():
            if getattr(self, width) % getattr(self, heads):
                raise ModelConfigError(
                    f"{heads}: {width} {getattr(self, width)} is not a multiple of {getattr(self, heads)}"
                )

    def normalise(self, images_B3HW: Tensor) -> Tensor:
        """Colours from 0 to 255 as the encoder expects them: float32."""
        mean_311, deviation_311 = (
            torch.tensor(values)[:, None, None].to(images_B3HW.device, non_blocking=True)
            for values in (self.pixel_mean, self.pixel_deviation)
        )
        return images_B3HW.float() / (255 * deviation_311) - mean_311 / deviation_311

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images in pixels; the aspect ratio of a word is not kept."""

    @abstractmethod
    def training_flops(self, length: int, orderings: int) -> float:
        """Floating-point operations of matrix products for one image, forward and backward.

        Args:
            length: L, decoder positions.
            orderings: K.
        """

    @property
    def eos(self) -> int:
        """Id of [E], the end; characters are 1 to `characters`."""
        return 0

    @property
    def bos(self) -> int:
        """Id of [B], the beginning: an input only."""
        return self.characters + 1

    @property
    def pad(self) -> int:
        """Id of [P], padding: an input only."""
        return self.characters + 2

    @property
    def classes(self) -> int:
        """C, ids that can be predicted: [E] and the characters."""
        return self.characters + 1

    def decoder_products(self, length: int, orderings: int, memory: int) -> float:
        """Multiplications in matrix products of one pass of the decoder over one image.

        Args:
            length: L, positions.
            orderings: K; the keys of the memory are computed once for all of them.
            memory: tokens of the memory.
        """
        d, queries = self.width, orderings * length
        # Query and output projections of both attentions, feed-forward, scores and their sums.
        stream = queries * (4 + 2 * self.decoder_mlp_ratio) * d * d + 2 * queries * (length + memory) * d
        layer = stream + 2 * (length + memory) * d * d
        content = (self.decoder_layers - 1) * stream  # the last layer's content stream is never computed
        return self.decoder_layers * layer + content + queries * d * self.classes
