"""`VisualTokenizer`: square images to ids and back, whatever is inside; frozen, so that ids mean the same for ever.

    visual_tokenizer.json    kind, geometry, what else the kind needs, and the hash of all of it and of the weights
    model.safetensors        the weights

Shapes: B images, S pixels of a side, N = grid * grid ids of an image in raster order (row r, column c at grid * r + c),
V codes, C features of a code.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from common.errors import InputError

VISUAL_FILE = "visual_tokenizer.json"
WEIGHTS_FILE = "model.safetensors"


class VisualTokenizerError(InputError, ValueError):
    """Files that are no visual tokenizer, or images and ids that do not fit it; the message names them."""


class VisualTokenizer(ABC):
    """An image tokenizer. Subclasses give `kind`, the geometry, `_encode`, `_decode`, `codebook` and `weights`."""

    kind: str
    """What `load_visual_tokenizer` chooses the class by."""
    image_size: int
    """S, pixels of a side; images are square."""
    grid: int
    """Ids of a side."""
    vocab_size: int
    """V."""

    @property
    def tokens_per_image(self) -> int:
        """N."""
        return self.grid * self.grid

    @cached_property
    def hash(self) -> str:
        """SHA-256 of kind, geometry and weights: equal where the ids are."""
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        for name, tensor in sorted(self.weights().items()):
            digest.update(f"\0{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def encode(self, images_BHWC: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> int64 [B, N], each in [0, V).

        Raises:
            VisualTokenizerError: images of another size or type.
        """
        size = (self.image_size, self.image_size, 3)
        if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[1:] != size:
            raise VisualTokenizerError(
                f"images: expected uint8 [B, {', '.join(map(str, size))}], found {images_BHWC.dtype} "
                f"{list(images_BHWC.shape)}; resize them to the tokenizer's image_size first"
            )
        return self._encode(images_BHWC)

    def decode(self, ids_BN: np.ndarray) -> np.ndarray:
        """Integers [B, N] -> uint8 [B, S, S, 3].

        Raises:
            VisualTokenizerError: another number of ids per image, or an id outside [0, V).
        """
        if ids_BN.ndim != 2 or ids_BN.shape[1] != self.tokens_per_image or ids_BN.dtype.kind not in "iu":
            raise VisualTokenizerError(
                f"ids: expected integers [B, {self.tokens_per_image}], found {ids_BN.dtype} {list(ids_BN.shape)}"
            )
        if ids_BN.size and not 0 <= int(ids_BN.min()) <= int(ids_BN.max()) < self.vocab_size:
            raise VisualTokenizerError(
                f"ids: must lie in [0, {self.vocab_size}), found {ids_BN.min()} to {ids_BN.max()}"
            )
        return self._decode(ids_BN.astype(np.int64))

    def save(self, directory: Path) -> None:
        """Writes both files; the same tokenizer always gives the same bytes."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: np.ascontiguousarray(tensor) for name, tensor in self.weights().items()}
        (directory / WEIGHTS_FILE).write_bytes(save(weights, {"format": "pt"}))
        content = json.dumps({**self.description(), "hash": self.hash}, indent=1)
        (directory / VISUAL_FILE).write_text(content + "\n", encoding="utf-8")

    def description(self) -> dict[str, Any]:
        """Kind, geometry and what else the kind needs to be built again; JSON-able."""
        geometry = {"image_size": self.image_size, "grid": self.grid, "vocab_size": self.vocab_size}
        return {"kind": self.kind, **geometry}

    @abstractmethod
    def codebook(self) -> np.ndarray:
        """Features of the codes, float32 [V, C]: input features for a language model over the ids."""

    @abstractmethod
    def weights(self) -> Mapping[str, np.ndarray]:
        """The tensors of model.safetensors by name."""

    @abstractmethod
    def _encode(self, images_BHWC: np.ndarray) -> np.ndarray:
        """`encode` of images that were checked."""

    @abstractmethod
    def _decode(self, ids_BN: np.ndarray) -> np.ndarray:
        """`decode` of ids that were checked."""
