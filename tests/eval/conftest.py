"""A tiny random LLaMA with a byte-level tokenizer, saved once per session: any text, no downloads, fast."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer model over bytes: 256 byte tokens after four special ones."""
    torch.set_num_threads(1)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bos_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The same model with a tokenizer that puts bos before every text by itself, as those that we train do."""
    folder = tmp_path / "bos_model"
    shutil.copytree(tiny_model, folder)
    file = folder / "tokenizer.json"
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 0}}],
    }
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    content = json.loads(file.read_text()) | {"post_processor": {**template, "special_tokens": special}}
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out text in the layout of `data_pipeline sample`: six distinct documents per language."""
    import random

    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = {
        "en": ["river", "stone", "light", "under", "the", "old", "bridge", "seven", "walked", "home"],
        "zh": list("山水天地人日月风雨春秋书画行舟"),
    }
    for language, joiner, length in (("en", " ", 400), ("zh", "", 600)):
        lines = []
        for number in range(6):
            text = joiner.join(
                f"{rng.choice(words[language])}{number if language == 'en' else ''}" for _ in range(length)
            )
            lines.append(json.dumps({"id": f"{language}{number}", "text": text, "lang": language}, ensure_ascii=False))
        (folder / f"valid.{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
