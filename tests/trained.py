"""Small trained tokenizers, made once, on a synthetic bilingual corpus in which few words are frequent."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tokenizer.train import TrainConfig, train_tokenizer

SYMBOLS = ("<|im_start|>", "<|im_end|>", "«中»")
MODEL_TYPES = ("bpe", "unigram")


@pytest.fixture(scope="session")
def corpus_texts() -> list[str]:
    """400 documents, about 0.4 MB, half of them Han, with line breaks, digits, repeated marks and user symbols."""
    rng = random.Random(7)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "or", "es")]
    latin = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(400)]
    han = [
        "".join(chr(0x4E00 + int(rng.paretovariate(0.4)) % 500) for _ in range(rng.randint(1, 3))) for _ in range(400)
    ]
    weights = [1 / rank for rank in range(1, 401)]

    def document(words: list[str], space: str, stop: str) -> str:
        lines = []
        for _ in range(rng.randint(2, 12)):
            line = space.join(rng.choices(words, weights, k=rng.randint(3, 30)))
            tail = rng.choice(["", f"{space}{rng.randint(0, 99999)}", " ...", "!!!", rng.choice(SYMBOLS), "    x = y"])
            lines.append(line + tail + stop)
        return "\n".join(lines)

    return [document(latin, " ", ".") if number % 2 else document(han, "", "。") for number in range(400)]


@pytest.fixture(scope="session")
def corpus_file(corpus_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same documents as a .jsonl file."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "texts.jsonl", corpus_texts)


@pytest.fixture(scope="session")
def trained(
    corpus_file: Path, corpus_texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function: bpe, unigram or byte_level -> directory of a tokenizer with 1,600 pieces, trained on first use."""
    made: dict[str, Path] = {}

    def directory(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            if kind == "byte_level":
                train_byte_level(corpus_texts, made[kind])
            else:
                train_tokenizer(train_config(corpus_file, made[kind], model_type=kind))
        return made[kind]

    return directory


def train_byte_level(texts: Iterable[str], directory: Path) -> None:
    """A byte-level BPE tokenizer like GPT-2's, with SYMBOLS as special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1600,
        special_tokens=["<s>", "</s>", *SYMBOLS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(directory)


def train_config(corpus: Path, output: Path, **changes: object) -> TrainConfig:
    """The configuration of the tests' tokenizers, with changes."""
    fields = {"vocab_size": 1600, "user_defined_symbols": list(SYMBOLS), "num_threads": 1, **changes}
    return TrainConfig(input=[str(corpus)], output=str(output), **fields)  # type: ignore[arg-type]


def write_jsonl(path: Path, texts: Iterable[str]) -> Path:
    """Writes one object a text."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
