"""Visual tokenizers: an image to a grid of codes and back. The door is `python -m tokenizer visual`.

base.py            VisualTokenizer: what every kind offers; its two files, its hash
patches.py         a k-means codebook of pixel patches: no network, decode is a table look-up
network.py         the networks of arch.visual: vq, fsq and the VQGAN of the paper
load.py            load_visual_tokenizer: opens any of them, and run directories
reconstruction.py  PSNR, SSIM and how many codes are used
commands.py        what the commands take and do; comparison.py draws originals beside reconstructions
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizer.visual.base import VISUAL_FILE, VisualTokenizer, VisualTokenizerError
    from tokenizer.visual.load import load_visual_tokenizer

_MODULES = {
    "VISUAL_FILE": "base",
    "VisualTokenizer": "base",
    "VisualTokenizerError": "base",
    "load_visual_tokenizer": "load",
}

__all__ = ["VISUAL_FILE", "VisualTokenizer", "VisualTokenizerError", "load_visual_tokenizer"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tokenizer.visual' has no attribute '{name}'")
    return getattr(import_module(f"tokenizer.visual.{_MODULES[name]}"), name)
