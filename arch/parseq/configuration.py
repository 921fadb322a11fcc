"""The sizes of a PARSeq, and what follows from them by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from arch.config_file import ModelConfigError, check_names, read_fields


@dataclass(frozen=True)
class ParseqConfig:
    """A PARSeq. The defaults are PARSeq-S with the 94 printable ASCII characters."""

    width: int = 384
    """d, of encoder and decoder."""
    encoder_layers: int = 12
    """ViT blocks."""
    encoder_heads: int = 6
    """Attention heads of a ViT block."""
    decoder_layers: int = 1
    """Two-stream blocks. The published sizes B to H fit two better than one; the paper does not say."""
    decoder_heads: int = 12
    """Attention heads of a decoder block."""
    encoder_mlp_ratio: int = 4
    """Hidden size of a ViT block's feed-forward layer, in widths."""
    decoder_mlp_ratio: int = 4
    """The same in the decoder."""
    image_height: int = 32
    """Pixels."""
    image_width: int = 128
    """Pixels; the aspect ratio of a word is not kept."""
    patch_height: int = 4
    """Pixels of a ViT patch."""
    patch_width: int = 8
    """Pixels of a ViT patch."""
    characters: int = 94
    """Characters that can be predicted."""
    max_length: int = 25
    """T, characters of the longest word."""
    dropout: float = 0.1
    """In the decoder and on its inputs; the encoder has none."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "dropout" and (not isinstance(value, int) or value < 1):
                raise ModelConfigError(f"{field.name}: must be a whole number of at least 1, found {value!r}")
        if not 0 <= self.dropout < 1:
            raise ModelConfigError(f"dropout: must be at least 0 and below 1, found {self.dropout}")
        for heads in ("encoder_heads", "decoder_heads"):
            if self.width % getattr(self, heads):
                raise ModelConfigError(f"{heads}: width {self.width} is not a multiple of {getattr(self, heads)}")
        for side in ("height", "width"):
            image, patch = getattr(self, f"image_{side}"), getattr(self, f"patch_{side}")
            if image % patch:
                raise ModelConfigError(f"patch_{side}: image_{side} {image} is not a multiple of {patch}")

    @property
    def image_tokens(self) -> int:
        """M, length of the encoder's output."""
        return (self.image_height // self.patch_height) * (self.image_width // self.patch_width)

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

    def forward_flops(self, length: int, orderings: int) -> float:
        """Floating-point operations of matrix products in one forward pass of one image.

        Args:
            length: L, decoder positions.
            orderings: K; the encoder and the keys of the image are computed once for all of them.
        """
        d, m = self.width, self.image_tokens
        patch = 3 * self.patch_height * self.patch_width * d * m
        block = m * (4 + 2 * self.encoder_mlp_ratio) * d * d + 2 * m * m * d
        queries = orderings * length
        # Query and output projections of both attentions, feed-forward, scores and their sums.
        stream = queries * (4 + 2 * self.decoder_mlp_ratio) * d * d + 2 * queries * (length + m) * d
        layer = stream + 2 * (length + m) * d * d
        content = (self.decoder_layers - 1) * stream  # the last layer's content stream is never computed
        products = (
            patch + self.encoder_layers * block + self.decoder_layers * layer + content + queries * d * self.classes
        )
        return 2.0 * products


def load_parseq_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ParseqConfig:
    """Reads a YAML of ParseqConfig fields (configs/parseq/*.yaml).

    Raises:
        ModelConfigError: not YAML, an unknown field, or a value that cannot be; names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model configuration")
    content = {**read_fields(path), **(overrides or {})}
    check_names(content, [field.name for field in fields(ParseqConfig)], str(path))
    try:
        return ParseqConfig(**content)
    except ModelConfigError as error:
        raise ModelConfigError(f"{path}: {error}") from None
