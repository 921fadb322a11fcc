"""The sizes of a CLIP4STR, and what follows from them by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from transformers import CLIPConfig

from arch.parseq.recogniser_config import RecogniserConfig
from common.config_file import ModelConfigError, load_dataclass

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True)
class Clip4StrConfig(RecogniserConfig):
    """A CLIP4STR. The defaults are CLIP4STR-B: CLIP ViT-B/16."""

    width: int = 512
    """e, of the space that images and texts share, and of both decoders."""
    decoder_heads: int = 8
    """Attention heads of a decoder block."""
    image_size: int = 224
    """Pixels of a side; the aspect ratio of a word is not kept."""
    patch_size: int = 16
    """Pixels of a side of a patch."""
    vision_width: int = 768
    """Of the image encoder."""
    vision_layers: int = 12
    """Its blocks."""
    vision_heads: int = 12
    """Its attention heads."""
    text_width: int = 512
    """Of the text encoder."""
    text_layers: int = 12
    """Its blocks."""
    text_heads: int = 8
    """Its attention heads."""
    text_tokens: int = 49408
    """Ids of captions; [SOT] and [EOT] are the last two."""
    text_positions: int = 77
    """Positions that the text encoder knows; captions use the first."""
    mlp_ratio: int = 4
    """Hidden size of the encoders' feed-forward layers, in widths."""
    activation: Activation = "quick_gelu"
    """Of the encoders: quick_gelu for OpenAI's weights, gelu for OpenCLIP's."""
    caption_length: int = 16
    """Tokens of a caption, [SOT] and [EOT] included."""
    frozen_text_layers: int = 6
    """First blocks of the text encoder that are not trained, nor are its embeddings then; 0: it is trained whole."""

    # OpenAI's CLIP.
    pixel_mean: ClassVar[tuple[float, float, float]] = (0.48145466, 0.4578275, 0.40821073)
    pixel_deviation: ClassVar[tuple[float, float, float]] = (0.26862954, 0.26130258, 0.27577711)
    smallest: ClassVar[dict[str, int]] = {"frozen_text_layers": 0, "text_tokens": 3, "caption_length": 3}
    heads: ClassVar[dict[str, str]] = {
        "decoder_heads": "width",
        "vision_heads": "vision_width",
        "text_heads": "text_width",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ModelConfigError(f"patch_size: image_size {self.image_size} is not a multiple of {self.patch_size}")
        if self.caption_length > self.text_positions:
            raise ModelConfigError(
                f"caption_length: {self.caption_length} tokens do not fit into text_positions {self.text_positions}"
            )
        if self.frozen_text_layers > self.text_layers:
            raise ModelConfigError(f"frozen_text_layers: {self.frozen_text_layers} of {self.text_layers} text_layers")
        if self.activation not in get_args(Activation):
            raise ModelConfigError(
                f"activation: must be one of {', '.join(get_args(Activation))}, found {self.activation!r}"
            )

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    @property
    def image_tokens(self) -> int:
        """M: patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def clip_config(self) -> CLIPConfig:
        """The same towers for transformers."""
        shared = {"hidden_act": self.activation, "projection_dim": self.width}
        text = {
            "hidden_size": self.text_width,
            "intermediate_size": self.mlp_ratio * self.text_width,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "max_position_embeddings": self.text_positions,
            "vocab_size": self.text_tokens,
            "bos_token_id": self.text_tokens - 2,
            "eos_token_id": self.text_tokens - 1,
            "pad_token_id": 0,
        }
        vision = {
            "hidden_size": self.vision_width,
            "intermediate_size": self.mlp_ratio * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }
        return CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=self.width)

    def training_flops(self, length: int, orderings: int) -> float:
        # Backward takes twice as many as forward and does not pass into frozen blocks. Captions are counted once:
        # orderings that agree share a pass through the text encoder.
        m, s = self.image_tokens, self.caption_length
        patches = (m - 1) * 3 * self.patch_size**2 * self.vision_width
        vision = patches + self.vision_layers * self._block(m, self.vision_width) + m * self.vision_width * self.width
        block = self._block(s, self.text_width)
        trained = (self.text_layers - self.frozen_text_layers) * block + s * self.text_width * self.width
        decoders = self.decoder_products(length, orderings, m) + self.decoder_products(length, orderings, m + s)
        return 2.0 * (3 * (vision + trained + decoders) + self.frozen_text_layers * block)

    def _block(self, tokens: int, width: int) -> int:
        """Multiplications of an encoder block."""
        return tokens * (4 + 2 * self.mlp_ratio) * width * width + 2 * tokens * tokens * width


def load_clip4str_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Clip4StrConfig:
    """Reads a YAML of Clip4StrConfig fields (configs/clip4str/models/*.yaml); errors are those of `load_dataclass`."""
    return load_dataclass(Clip4StrConfig, path, overrides)
