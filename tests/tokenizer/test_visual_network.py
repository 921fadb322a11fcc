"""Networks as visual tokenizers: saved and opened they give the same ids, whatever they are batched with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arch.vq.configuration import VisualTokenizerConfig
from arch.vq.vq_model import VqModel
from tests.tokenizer.image_cases import draw_images
from tokenizer.visual.base import VISUAL_FILE, VisualTokenizerError
from tokenizer.visual.load import load_visual_tokenizer
from tokenizer.visual.network import CHUNK, NetworkTokenizer

TINY = {"image_size": 16, "grid": 4, "stem": 2, "width": 8, "blocks": 1, "codes": 12, "code_dim": 4, "levels": (3, 4)}


def make(quantizer: str) -> NetworkTokenizer:
    torch.manual_seed(0)
    model = VqModel(VisualTokenizerConfig(**{**TINY, "quantizer": quantizer}))
    model.initialise_codebook(torch.rand(4, 3, 16, 16))
    return NetworkTokenizer(model)


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_saved_and_loaded_it_is_the_same(quantizer, tmp_path):
    tokenizer = make(quantizer)
    tokenizer.save(tmp_path)
    again = load_visual_tokenizer(tmp_path)
    images = draw_images(5, 16)
    ids = tokenizer.encode(images)
    assert again.kind == quantizer and again.hash == tokenizer.hash
    assert ids.dtype == np.int64 and ids.shape == (5, 16) and len(np.unique(ids)) > 1
    assert np.array_equal(again.encode(images), ids) and np.array_equal(again.decode(ids), tokenizer.decode(ids))
    assert again.codebook().shape == (12, 4 if quantizer == "vq" else 2)
    assert not any(p.requires_grad for p in again.network.parameters()) and not again.network.training


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 3])
def test_ids_do_not_depend_on_the_batch(count):
    tokenizer, images = make("vq"), draw_images(CHUNK + 3, 16)[:count]
    one_by_one = [tokenizer.encode(image[None]) for image in images]
    ids = tokenizer.encode(images)
    assert np.array_equal(ids, np.concatenate([np.zeros((0, 16), dtype=np.int64), *one_by_one]))
    assert tokenizer.decode(ids).shape == (count, 16, 16, 3)


def test_kind_and_weights_must_belong_together(tmp_path):
    make("vq").save(tmp_path)
    path = tmp_path / VISUAL_FILE
    content = json.loads(path.read_text())
    cases = [
        ({"kind": "fsq"}, "kind is fsq, but model.quantizer vq"),
        ({"kind": "patches"}, "expected one tensor 'patches'"),
        ({"model": {**content["model"], "widht": 1}}, "unknown field 'widht'"),
        ({"model": {**content["model"], "width": 16}}, "does not fit"),
        ({"model": {**content["model"], "decay": 0.9}}, "are not what was saved"),
        ({"vocab_size": 13}, "vocab_size is 13, the weights say 12"),
    ]
    for change, message in cases:
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(VisualTokenizerError, match=message):
            load_visual_tokenizer(tmp_path)
    path.write_text(json.dumps(content))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["decoder.0.bias"][0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(VisualTokenizerError, match="are not what was saved"):
        load_visual_tokenizer(tmp_path)
