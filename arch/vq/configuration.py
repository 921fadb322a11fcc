"""The sizes of a small convolutional tokenizer, and what follows from them by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from common.config_file import ModelConfigError, check_names, elsewhere, read_fields

LARGEST = 2**20
"""Any size, and the number of codes: a description beside weights from elsewhere is believed no further."""
MOST_LAYERS = 256


@dataclass(frozen=True)
class VisualTokenizerConfig:
    """An autoencoder whose bottleneck is a grid of codes. The defaults: docs/methods/delvm.md: CPU scale."""

    quantizer: Literal["vq", "fsq"] = "vq"
    """A learnt codebook (vq: nearest vector, moving averages) or a fixed lattice (fsq: rounding, nothing to learn)."""
    image_size: int = 64
    """S, pixels of a side."""
    grid: int = 8
    """Codes of a side; image_size / grid must be the stem times a power of two."""
    stem: int = 4
    """Pixels of a side that become channels at once (PixelUnshuffle): no convolution runs at full resolution."""
    width: int = 64
    """Channels."""
    blocks: int = 2
    """Residual blocks at each resolution."""
    codes: int = 512
    """V, of a vq codebook."""
    code_dim: int = 16
    """Length of a vq code."""
    decay: float = 0.99
    """Of the moving averages that a vq codebook follows; one update per micro-batch."""
    dead_code_threshold: float = 1.0
    """A vq code is replaced by a random latent when the moving average of how often a micro-batch uses it falls below
    this; 0: never. Keep it well below grid * grid * micro-batch / codes."""
    levels: tuple[int, ...] = (8, 8, 8)
    """Levels of each dimension of fsq; their product is V."""

    def __post_init__(self) -> None:
        for name in ("image_size", "grid", "stem", "width", "blocks", "codes", "code_dim"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise ModelConfigError(f"{name}: must be a whole number from 1 to {LARGEST:,}, found {value!r}")
        if self.blocks > MOST_LAYERS or len(self.levels) > MOST_LAYERS:
            raise ModelConfigError(f"blocks, levels: more than {MOST_LAYERS} of them")
        if self.quantizer not in ("vq", "fsq"):
            raise ModelConfigError(f"quantizer: must be vq or fsq, found {self.quantizer!r}")
        if not self.levels or not all(isinstance(level, int) and level >= 3 for level in self.levels):
            raise ModelConfigError(f"levels: must be whole numbers of at least 3, found {list(self.levels)}")
        if self.vocab_size > LARGEST:
            raise ModelConfigError(f"levels: {self.vocab_size:,} codes, more than {LARGEST:,}")
        if not 0 < self.decay < 1 or self.dead_code_threshold < 0:
            raise ModelConfigError(
                f"decay, dead_code_threshold: must lie between 0 and 1, and be at least 0; found {self.decay}, "
                f"{self.dead_code_threshold}"
            )
        if self.width % self.groups:
            raise ModelConfigError(f"width: {self.width} is not a multiple of {self.groups}")
        factor, rest = divmod(self.image_size, self.grid * self.stem)
        if rest or factor & (factor - 1) or not factor:
            raise ModelConfigError(
                f"grid: image_size {self.image_size} must be grid {self.grid} * stem {self.stem} * a power of two"
            )

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.codes if self.quantizer == "vq" else math.prod(self.levels)

    @property
    def latent_dim(self) -> int:
        """Channels at the bottleneck."""
        return self.code_dim if self.quantizer == "vq" else len(self.levels)

    @property
    def halvings(self) -> int:
        """Times that the encoder halves the resolution after the stem."""
        return (self.image_size // (self.grid * self.stem)).bit_length() - 1

    @property
    def weights(self) -> int:
        """Numbers in the convolutions, without biases, and in a vq codebook: most of what the network holds."""
        w, pixels = self.width, 3 * self.stem**2
        blocks = 2 * (self.halvings + 1) * self.blocks * 2 * 9 * w * w
        ends = 2 * 9 * pixels * w + (9 + 1) * w * self.latent_dim
        return (
            blocks
            + ends
            + 2 * self.halvings * 9 * w * w
            + (self.codes * self.code_dim if self.quantizer == "vq" else 0)
        )

    @property
    def groups(self) -> int:
        """Groups of a group norm."""
        return math.gcd(8, self.width)

    def forward_flops(self) -> float:
        """Floating-point operations of the convolutions (and of the nearest-code search) for one image, both ways."""
        w, cells = self.width, self.grid * self.grid
        pixels = 3 * self.stem**2
        finest = (self.image_size // self.stem) ** 2
        blocks = sum(2 * self.blocks * 2 * 9 * w * w * cells * 4**level for level in range(self.halvings + 1))
        stems = 2 * 9 * pixels * w * finest
        # Down to each coarser resolution by a strided convolution there, up from it by one at the finer resolution.
        changes = sum(9 * w * w * cells * (4**level + 4 ** (level + 1)) for level in range(self.halvings))
        ends = (1 + 9) * w * self.latent_dim * cells
        search = self.codes * self.code_dim * cells if self.quantizer == "vq" else 0
        return 2.0 * (blocks + stems + changes + ends + search)


def load_visual_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> VisualTokenizerConfig:
    """Reads a YAML of VisualTokenizerConfig fields (configs/vq/models/*.yaml).

    Raises:
        ModelConfigError: not YAML, an unknown field, or a value that cannot be; names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model configuration{elsewhere(path)}")
    return visual_config({**read_fields(path), **(overrides or {})}, str(path))


def visual_config(content: Mapping[str, Any], where: str) -> VisualTokenizerConfig:
    """A configuration from a mapping of fields. Raises ModelConfigError, with `where`, for what cannot be."""
    check_names(content, [field.name for field in fields(VisualTokenizerConfig)], where)
    levels = content.get("levels", VisualTokenizerConfig.levels)
    if not isinstance(levels, (list, tuple)):
        raise ModelConfigError(f"{where}: levels: must be a list, found {levels!r}")
    try:
        return VisualTokenizerConfig(**{**content, "levels": tuple(levels)})
    except ModelConfigError as error:
        raise ModelConfigError(f"{where}: {error}") from None
