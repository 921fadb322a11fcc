"""Shards made by hand, so that tests of the loader need no tokenizer; a tokenizer and texts for tests of prepare."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from common.token_shards import INDEX_DTYPE, Meta, ShardMeta, sha256_of, token_bytes_for

BOS, EOS = 1, 2

WriteShards = Callable[..., Path]

# A busy machine is no failure: properties are about results, and the tests that are about time say so.
settings.register_profile("data_pipeline", deadline=None, max_examples=50)
settings.load_profile("data_pipeline")


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """A function (shards: list of lists of documents) -> directory; bos and eos are added here, except to images."""

    def write(
        shards: Sequence[Sequence[Sequence[int]]],
        name: str = "corpus",
        vocab_size: int = 1000,
        tokenizer_hash: str = "tokenizer-a",
        tokens_per_image: int | None = None,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True)
        width = token_bytes_for(vocab_size)
        metas = []
        for number, documents in enumerate(shards):
            whole = [document if tokens_per_image else [BOS, *document, EOS] for document in documents]
            path = directory / f"{number:05d}.ds"
            tokens = np.concatenate(whole).astype(f"<u{width}")
            path.write_bytes(tokens.tobytes())
            index = Path(f"{path}.index")
            index.write_bytes(np.cumsum([len(document) for document in whole]).astype(INDEX_DTYPE).tobytes())
            text_bytes = 3 * sum(map(len, documents))
            metas.append(ShardMeta(path.name, len(tokens), len(whole), text_bytes, sha256_of(path), sha256_of(index)))
        ends = (None, None) if tokens_per_image else (BOS, EOS)
        inputs = {"tokenizer": {"tokens_per_image": tokens_per_image}} if tokens_per_image else {}
        Meta(tokenizer_hash, vocab_size, width, *ends, metas, inputs=inputs).save(directory)
        return directory

    return write


@pytest.fixture
def random_shards(write_shards: WriteShards) -> Path:
    """Three shards, 60 documents of 0 to 40 tokens, ids 3 to 999."""
    random = np.random.default_rng(0)
    return write_shards(
        [[random.integers(3, 1000, random.integers(0, 40)).tolist() for _ in range(20)] for _ in range(3)]
    )


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE tokenizer: <unk> 0, <s> 1, </s> 2, <pad> 3; any text survives it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(directory)
    return directory


TEXTS = [
    text * repeat
    for repeat in range(1, 21)
    for text in (
        "In the beginning was the word. ",
        "\u7684\u662f\u4e00\u4e2a\u4e0d\u597d\uff0c",
        "Numbers 12 and 345 <s> </s>!\n",
        "e\u0301 \U0001f600 ",
    )
]
"""Eighty documents in several scripts, 5 to 600 characters."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """`TEXTS` as a .jsonl file."""
    path = tmp_path / "corpus.jsonl"
    path.write_text(
        "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)), encoding="utf-8"
    )
    return path
