"""Tokenizers that are networks of arch.vq: vq and fsq (trained here), and the VQGAN of the paper.

Images pass the network `CHUNK` at a time, the last ones filled up, because convolutions of another batch size may round
in another way: so an image's ids do not depend on what it is encoded together with. Another processor may still round
differently and give another id where two codes are equally near.

Shapes: B images, S pixels of a side, N ids of an image, V codes, C features of a code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from arch.vq.configuration import VisualTokenizerConfig, visual_config
from arch.vq.vq_model import VqModel
from tokenizer.visual.base import VisualTokenizer

if TYPE_CHECKING:
    from arch.vq.vqgan import Vqgan

CHUNK = 16
"""Images of a forward pass."""


class NetworkTokenizer(VisualTokenizer):
    """A frozen network.

    Args:
        network: taken as it is, and put into evaluation mode.
    """

    def __init__(self, network: VqModel | Vqgan) -> None:
        self.network = network.eval().requires_grad_(False)
        if isinstance(network, VqModel):
            self.kind, self._model = network.config.quantizer, _as_fields(network.config)
            self.image_size, self.grid = network.config.image_size, network.config.grid
        else:
            self.kind, self._model = "vqgan", {}
            self.image_size, self.grid = network.image_size, network.grid
        self.vocab_size = len(network.codebook())

    @classmethod
    def from_weights(cls, description: dict[str, Any], weights: dict[str, np.ndarray]) -> NetworkTokenizer:
        """The tokenizer of a directory's two files.

        Raises:
            ValueError, RuntimeError: description and weights do not fit together.
        """
        if description["kind"] == "vqgan":
            from arch.vq.vqgan import Vqgan

            network: VqModel | Vqgan = Vqgan()
        else:
            config = visual_config(description["model"], "model")
            if config.quantizer != description["kind"]:
                raise ValueError(f"kind is {description['kind']}, but model.quantizer {config.quantizer}")
            # A description of a few bytes can ask for any amount of memory; the file of weights has to be as large.
            if config.weights > (held := sum(array.size for array in weights.values())):
                raise ValueError(
                    f"the model that is described holds {config.weights:,} numbers, the file only {held:,}"
                )
            network = VqModel(config)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        return cls(network)

    def to(self, device: str | torch.device) -> NetworkTokenizer:
        """Moves the network, in place."""
        self.network.to(device)
        return self

    def description(self) -> dict[str, Any]:
        return super().description() | ({"model": self._model} if self._model else {})

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def codebook(self) -> np.ndarray:
        return self.network.codebook().detach().float().cpu().numpy()

    def _encode(self, images_BHWC: np.ndarray) -> np.ndarray:
        images_B3SS = torch.from_numpy(np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)))
        ids_BN = self._in_chunks(images_B3SS, lambda chunk: self.network.encode(chunk.float() / 255))
        return ids_BN.numpy()

    def _decode(self, ids_BN: np.ndarray) -> np.ndarray:
        images_B3SS = self._in_chunks(torch.from_numpy(ids_BN), lambda chunk: 255 * self.network.decode(chunk))
        return images_B3SS.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def _in_chunks(self, items: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of all items, on the network's device, always as many at a time; the result on the host."""
        device = next(self.network.parameters()).device
        results = []
        for start in range(0, max(len(items), 1), CHUNK):
            chunk = items[start : start + CHUNK]
            filled = torch.cat([chunk, chunk.new_zeros(CHUNK - len(chunk), *chunk.shape[1:])])
            results.append(function(filled.to(device))[: len(chunk)].cpu())
        return torch.cat(results)


def _as_fields(config: VisualTokenizerConfig) -> dict[str, Any]:
    """As JSON gives it back."""
    return {**asdict(config), "levels": list(config.levels)}
