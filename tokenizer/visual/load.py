"""Opens a visual tokenizer: a directory of its two files, or a run of `VisualTokenizerTask`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from common.find_model import folder_with
from common.untrusted_files import read_json
from tokenizer.visual.base import VISUAL_FILE, WEIGHTS_FILE, VisualTokenizer, VisualTokenizerError

MAX_DESCRIPTION_BYTES = 2**20
MAX_IMAGE_SIZE = 2**13
"""Pixels of a side: images are made of this size from a file's word; `tokenizer.inputs.images` reads none that are
larger."""
GEOMETRY = ("image_size", "grid", "vocab_size")


def find_visual_tokenizer(path: str | Path) -> Path | None:
    """The directory with the two files: `path` itself, the newest checkpoint of a run, or none."""
    return folder_with(path, VISUAL_FILE)


def load_visual_tokenizer(path: str | Path) -> VisualTokenizer:
    """Opens a tokenizer and checks it against the hash that was stored with it.

    Args:
        path: what `VisualTokenizer.save` or a checkpoint of `VisualTokenizerTask` wrote, or a run directory, of which
            the newest checkpoint is taken.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        VisualTokenizerError: no visual tokenizer, a damaged one, or files that do not belong together; names the file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such directory")
    directory = find_visual_tokenizer(path)
    if directory is None:
        raise VisualTokenizerError(f"{path}: holds no {VISUAL_FILE}; it is neither a visual tokenizer nor a run of one")
    description = _read_description(directory / VISUAL_FILE)
    stored = description.pop("hash")
    weights = _read_weights(directory / WEIGHTS_FILE)
    try:
        tokenizer = _build(description, weights)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = str(error) if isinstance(error, VisualTokenizerError) else f"{type(error).__name__}: {error}"
        raise VisualTokenizerError(f"{directory / WEIGHTS_FILE} does not fit {VISUAL_FILE}: {reason}") from None
    for name in GEOMETRY:
        if getattr(tokenizer, name) != description[name]:
            raise VisualTokenizerError(
                f"{directory / VISUAL_FILE}: {name} is {description[name]}, the weights say {getattr(tokenizer, name)}"
            )
    if tokenizer.hash != stored:
        raise VisualTokenizerError(
            f"{directory}: {WEIGHTS_FILE} and {VISUAL_FILE} are not what was saved (hash {tokenizer.hash[:12]}, "
            f"stored {stored[:12]}); restore both from a copy, or train the tokenizer again"
        )
    return tokenizer


def _build(description: dict[str, Any], weights: dict[str, np.ndarray]) -> VisualTokenizer:
    """Each kind imports what it needs only when it is asked for: torch, diffusers."""
    kind = description["kind"]
    if kind == "patches":
        from tokenizer.visual.patches import PatchTokenizer

        return PatchTokenizer.from_weights(description, weights)
    if kind in ("vq", "fsq", "vqgan"):
        from tokenizer.visual.network import NetworkTokenizer

        return NetworkTokenizer.from_weights(description, weights)
    raise VisualTokenizerError(f"unknown kind {kind!r}")


def _read_description(path: Path) -> dict[str, Any]:
    description = read_json(path, VisualTokenizerError, MAX_DESCRIPTION_BYTES)
    if not isinstance(description, dict):
        raise VisualTokenizerError(f"{path}: expected a mapping, found {type(description).__name__}")
    for name, kind in (("kind", str), ("hash", str), *((name, int) for name in GEOMETRY)):
        if type(description.get(name)) is not kind:
            raise VisualTokenizerError(f"{path}: {name} is {description.get(name)!r}, expected {kind.__name__}")
    if not 1 <= description["image_size"] <= MAX_IMAGE_SIZE:
        raise VisualTokenizerError(f"{path}: image_size must lie between 1 and {MAX_IMAGE_SIZE}")
    return description


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise VisualTokenizerError(f"{path}: missing or damaged ({error})") from None
