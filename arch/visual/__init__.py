"""Networks of the visual system: images to codes and back, and what a language model over codes has besides.

configuration.py   VisualTokenizerConfig: every size of the small network; its FLOPs by arithmetic
vq_model.py        VqModel: a convolutional autoencoder around a VQ or FSQ bottleneck
vqgan.py           the f16 VQGAN of the paper, from published weights; the only file that imports diffusers
perceptual.py      PerceptualDistance: how different two images look to a frozen classifier
factorised_embedding.py, initialisation.py, accounting.py   a language model's input through a frozen codebook, how
                   DeLVM starts, what it costs

`VqModel` and `Vqgan` share `encode` (images in [0, 1] to ids), `decode` (ids to images) and `codebook`.
"""

import importlib
from typing import Any

_HOMES = {
    "PerceptualDistance": "perceptual",
    "VisualTokenizerConfig": "configuration",
    "VqModel": "vq_model",
    "Vqgan": "vqgan",
    "load_visual_config": "configuration",
    "read_vqgan_weights": "vqgan",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torchvision and diffusers cost seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'arch.visual' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
