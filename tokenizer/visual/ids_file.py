"""A file of ids of many images, `.npz` or `.safetensors`: `ids` int64 [B, N], and the hash of their tokenizer."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tokenizer.visual.base import VisualTokenizer, VisualTokenizerError


def write_ids(path: Path, ids_BN: np.ndarray, tokenizer_hash: str) -> None:
    """Writes ids; the suffix of `path` says how."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, ids=ids_BN, tokenizer_hash=np.array(tokenizer_hash))
    else:
        save_file({"ids": np.ascontiguousarray(ids_BN)}, path, {"tokenizer_hash": tokenizer_hash})


def read_ids(path: Path, tokenizer: VisualTokenizer) -> np.ndarray:
    """Ids [B, N] for `tokenizer`; a file that does not say whose ids they are is believed.

    Raises:
        FileNotFoundError: there is no such file.
        VisualTokenizerError: damaged, without `ids`, or of another tokenizer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    stored = None
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                ids_BN = arrays["ids"]
                stored = str(arrays["tokenizer_hash"]) if "tokenizer_hash" in arrays else None
        else:
            with safe_open(path, "numpy") as arrays:
                ids_BN = arrays.get_tensor("ids")
                stored = (arrays.metadata() or {}).get("tokenizer_hash")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        raise VisualTokenizerError(f"{path}: no file of ids that can be read ({error})") from None
    if stored not in (None, tokenizer.hash):
        raise VisualTokenizerError(
            f"{path}: ids of the tokenizer {stored[:12]}, not of this one ({tokenizer.hash[:12]})"
        )
    return ids_BN
