"""Image shards of four tokens an image, written by hand: pairs whose target is a shift of the input's codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.token_shards import INDEX_DTYPE, Meta, ShardMeta, sha256_of
from tokenizer.visual.patches import PatchTokenizer

CODES, IMAGES = 32, 4
"""Codes of the tokenizer, images of a sentence."""
SHAPE = {
    "vocab_size": CODES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "attention_bias": True, "rms_norm_eps": 1e-5, "series_terms": 1, "shortcut_count": 0, "tie_word_embeddings": False,
}  # fmt: skip


def make_tokenizer(seed: int = 0, codes: int = CODES, patch: int = 2, grid: int = 2) -> PatchTokenizer:
    """Codes of random patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (codes, 3 * patch * patch), dtype=np.uint8)
    return PatchTokenizer(patches, grid * patch)


def write_pairs(directory: Path, tokenizer: PatchTokenizer, shift: int = 1, count: int = 40, seed: int = 0) -> Path:
    """Pairs (input, target = input + shift), as `prepare` writes them."""
    n = tokenizer.tokens_per_image
    inputs_RN = np.random.default_rng(seed).integers(0, tokenizer.vocab_size, (count, n))
    records = np.concatenate([inputs_RN, (inputs_RN + shift) % tokenizer.vocab_size], axis=1).astype("<u2")
    directory.mkdir(parents=True)
    tokens, index = directory / "00000.ds", directory / "00000.ds.index"
    tokens.write_bytes(records.tobytes())
    index.write_bytes((np.arange(1, count + 1) * 2 * n).astype(INDEX_DTYPE).tobytes())
    pixels = 2 * count * 3 * tokenizer.image_size**2
    shard = ShardMeta(tokens.name, records.size, count, pixels, sha256_of(tokens), sha256_of(index))
    inputs: dict[str, Any] = {"tokenizer": {"tokens_per_image": n}}
    Meta(tokenizer.hash, tokenizer.vocab_size, 2, None, None, [shard], inputs=inputs).save(directory)
    tokenizer.save(directory / "tokenizer")
    return directory
