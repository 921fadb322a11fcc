"""What the tests of `arch.surgery` share: hashes of models, calibration shards, targets in YAML."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from arch.pangu_pi import PanguPiForCausalLM
from arch.surgery.groups import Kind, Selection, unit_sets
from common.token_shards import INDEX_DTYPE, Meta, ShardMeta

from .conftest import PLAIN, SHAPE

UNLIKE_LLAMA: dict[str, Any] = {"final_logit_softcapping": 4.0, "qk_norm": True}
# Donors that differ in what is coupled to what.
DONORS: dict[str, dict[str, Any]] = {
    "pangu": {},
    "pangu-tied": {"tie_word_embeddings": True, "shortcut_count": 2, "series_learn_first": False},
    "scalar-series": {"series_scope": "scalar", "series_terms": 3, "shortcut_input": "raw", **UNLIKE_LLAMA},
    "llama": PLAIN,
    "llama-biases": {**PLAIN, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
}


def fingerprint(model: PanguPiForCausalLM) -> str:
    """Changes with any bit of any weight, and with whether a weight takes gradients."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.requires_grad}".encode())
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def some_units(model: PanguPiForCausalLM, share: float = 0.5, seed: int = 3) -> Selection:
    """A random choice of units of every kind, others in every layer."""
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[Kind, list[torch.Tensor]] = {}
    for kind, sets in unit_sets(model).items():
        count = max(1, round(share * sets[0].units))
        chosen[kind] = [torch.randperm(s.units, generator=generator)[:count].sort().values for s in sets]
    return chosen


def all_units(model: PanguPiForCausalLM) -> Selection:
    """Every unit of every kind."""
    return {kind: [torch.arange(s.units) for s in sets] for kind, sets in unit_sets(model).items()}


def write_shards(
    directory: Path, tokens: int = 4000, vocab_size: int = SHAPE["vocab_size"], tokenizer: str = "donor", seed: int = 0
) -> Path:
    """Two shards of a stream in which token t is often followed by (3 t + 1) mod V, so there is something to learn."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    stream = np.empty(tokens, dtype="<u2")
    stream[0] = 1
    for place in range(1, tokens):
        follows = rng.random() < 0.9
        stream[place] = (3 * int(stream[place - 1]) + 1) % vocab_size if follows else rng.integers(vocab_size)
    shards = []
    for number, part in enumerate(np.array_split(stream, 2)):
        part.tofile(directory / f"{number:05}.ds")
        np.array([len(part)], INDEX_DTYPE).tofile(directory / f"{number:05}.ds.index")
        shards.append(ShardMeta(f"{number:05}.ds", len(part), 1, 2 * len(part), "", ""))
    Meta(tokenizer, vocab_size, 2, 1, 2, shards).save(directory)
    return directory


def write_map(path: Path, kept: list[int], donor_vocab_size: int = SHAPE["vocab_size"]) -> Path:
    """The map of a compressed tokenizer, from `donor` to `new`."""
    content = {"format": 1, "donor_hash": "donor", "hash": "new", "donor_vocab_size": donor_vocab_size, "kept": kept}
    path.write_text(json.dumps(content))
    return path


def write_target(path: Path, **fields: Any) -> Path:
    """A target of two layers, width 32, one key/value head of two, half of the FFN, half of the shortcut."""
    shape = SHAPE | {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "head_dim": 16}
    path.write_text(yaml.safe_dump(shape | {"num_attention_heads": 2, "num_key_value_heads": 1} | fields))
    return path
