"""Tokens per second and core from raw text to shards: `python benchmarks/prepare.py`.

    prepare       everything: reading .jsonl, encoding, special tokens, checksums, flushing to the disk
    tokenizers    only `encode_batch` of the same texts, which are in memory already
    datatrove     its JsonlReader and DocumentTokenizer, without shuffling: the same files with fewer checks

One process, one thread. The text is the quick start's corpus, or --input.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path

from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from measure import finish, table, take_turns
from tokenizers import Tokenizer

from data_pipeline.demo.text import SampleConfig, sample
from data_pipeline.shards.executors import quiet
from data_pipeline.shards.prepare import prepare
from data_pipeline.shards.prepare_config import PrepareConfig
from tokenizer.inputs.documents import read_documents
from tokenizer.train import TrainConfig, train_tokenizer

BATCH = 1000


def timed(work: Callable[[Path], int]) -> float:
    """Tokens per second of work that writes into a fresh folder and returns how many tokens it made."""
    with tempfile.TemporaryDirectory() as folder, quiet(), redirect_stderr(StringIO()):
        started = time.perf_counter()
        tokens = work(Path(folder))
        return tokens / (time.perf_counter() - started)


def run_prepare(files: list[str], tokenizer: str, folder: Path) -> int:
    """Our prepare, from the call to meta.json."""
    return prepare(PrepareConfig(files, str(folder / "out"), tokenizer, workers=1)).tokens


def run_tokenizers(texts: list[str], tokenizer: str, folder: Path) -> int:
    """Batch encoding alone."""
    backend = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    tokens = 0
    for start in range(0, len(texts), BATCH):
        encodings = backend.encode_batch(texts[start : start + BATCH], add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in encodings)
    return tokens


def run_datatrove(files: list[str], tokenizer: str, folder: Path) -> int:
    """datatrove's own reader and tokenizer steps."""
    for number, file in enumerate(files):
        reader = JsonlReader(str(Path(file).parent), glob_pattern=Path(file).name)
        writer = DocumentTokenizer(
            str(folder), f"{tokenizer}/tokenizer.json", shuffle_documents=False, batch_size=BATCH
        )
        writer.run(reader.run(), rank=number)
    return sum(path.stat().st_size for path in folder.glob("*.ds")) // 2


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", help=".jsonl files; default: the built-in corpus")
    parser.add_argument("--tokenizer", help="tokenizer directory; default: one trained on the input")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of the trained one; up to 65,536")
    parser.add_argument("--model_type", default="bpe", choices=["bpe", "unigram"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        files, tokenizer = options.input, options.tokenizer
        if not files:
            sample(SampleConfig(output=folder))
            files = sorted(str(path) for path in Path(folder).glob("train.*.jsonl"))
        if not tokenizer:
            tokenizer = f"{folder}/tokenizer"
            train_tokenizer(TrainConfig(files, tokenizer, vocab_size=options.vocab_size, model_type=options.model_type))
        texts = [document.text for file in files for document in read_documents(file)]
        contenders = {
            "prepare": partial(timed, partial(run_prepare, files, tokenizer)),
            "tokenizers": partial(timed, partial(run_tokenizers, texts, tokenizer)),
            "datatrove": partial(timed, partial(run_datatrove, files, tokenizer)),
        }
        size = sum(len(text.encode()) for text in texts)
        title = f"Raw text to shards, {len(texts):,} documents, {size / 1e6:.1f} MB"
        tables = {
            "tokens_per_second": table(
                title, "tokens/s on one core", take_turns(contenders, options.repeats), "prepare"
            )
        }
    finish("prepare", tables, documents=len(texts), bytes=size, model_type=options.model_type)


if __name__ == "__main__":
    main()
