"""Tokens per second that one process can serve, and how long resuming takes: `python benchmarks/loader.py`.

    ours           Loader: keyed order, packing, ignored labels between documents, positions that restart
    memmap crops   random crops of one memory-mapped array, as nanoGPT does: no documents, no epochs, no resuming
    flattening     datasets + DataLoader + transformers' DataCollatorWithFlattening: whole documents in one long row

All on one thread and on the same documents: lengths log-normal with median 250, ids of two bytes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch
from measure import finish, table, take_turns
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening

from common.token_shards import Meta
from data_pipeline.loader import Batch, Loader, collate_tokens
from data_pipeline.order import Order
from data_pipeline.shards.token_source import TokenSource
from data_pipeline.shards.write_shard import ShardWriter

VOCAB_SIZE = 8192
MEAN_LENGTH = 410


def write_shard(directory: Path, tokens: int) -> list[list[int]]:
    """One shard of about `tokens` random tokens; returns its documents."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(250), 1, tokens // MEAN_LENGTH), 1, 20_000).astype(int)
    token_N = random.integers(4, VOCAB_SIZE, lengths.sum())
    documents = [[1, *document.tolist(), 2] for document in np.split(token_N, np.cumsum(lengths)[:-1])]
    with ShardWriter(directory, 0, np.dtype("<u2")) as writer:
        writer.write(documents, text_bytes=4 * token_N.size)
        shard = writer.publish()
    Meta("benchmark", VOCAB_SIZE, 2, 1, 2, [shard]).save(directory)
    return documents


def ours(directory: Path, length: int, batch_size: int, step: int, steps: int) -> Iterable[Batch]:
    """Micro-batches of our loader from `step` on; opening the shards is part of it."""
    source = TokenSource(directory, length)
    order = Order([len(source)], batch_size, seed=0)
    loader = Loader(
        source,
        order,
        collate_tokens,
        rank=0,
        world_size=1,
        micro_batch_size=batch_size,
        start_step=step,
        stop_step=step + steps,
    )
    return (batch for [batch] in loader)


def memmap_crops(directory: Path, length: int, batch_size: int, steps: int) -> Iterable[Batch]:
    """Batches as in nanoGPT's `get_batch`."""
    data = np.memmap(directory / "00000.ds", np.uint16, mode="r")
    for _ in range(steps):
        starts = torch.randint(len(data) - length, (batch_size,))
        yield {
            "input_ids": torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in starts]),
            "labels": torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in starts]),
        }


def flattening(documents: datasets.Dataset, tokens_per_batch: int, steps: int) -> Iterable[Batch]:
    """Rows of whole documents, about `tokens_per_batch` long."""
    collate = DataCollatorWithFlattening(return_tensors="pt")
    per_batch = max(1, tokens_per_batch // MEAN_LENGTH)
    return islice(DataLoader(documents, per_batch, shuffle=True, collate_fn=collate), steps)


def tokens_per_second(batches: Callable[[], Iterable[Batch]]) -> float:
    """Input tokens over seconds, from opening to the last batch."""
    started = time.perf_counter()
    tokens = sum(batch["input_ids"].numel() for batch in batches())
    return tokens / (time.perf_counter() - started)


def seconds(batches: Callable[[], Iterable[Batch]]) -> float:
    """Time until the first batch is there."""
    started = time.perf_counter()
    next(iter(batches()))
    return time.perf_counter() - started


def loaders(directory: Path, documents: datasets.Dataset, length: int, size: int) -> dict[str, Callable[[], float]]:
    """The contenders, each of which serves some millions of tokens and returns its speed."""
    steps = 8_000_000 // (length * size)
    return {
        "ours": partial(tokens_per_second, partial(ours, directory, length, size, 0, steps)),
        "memmap crops": partial(tokens_per_second, partial(memmap_crops, directory, length, size, steps)),
        "flattening": partial(tokens_per_second, partial(flattening, documents, length * size, steps // 8)),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="size of the shard")
    parser.add_argument("--batch_size", type=int, default=64, help="sequences per step")
    parser.add_argument("--sequence_lengths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, tables = options.batch_size, {}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        documents = write_shard(directory, options.tokens)
        dataset = datasets.Dataset.from_dict({"input_ids": documents[: 4_000_000 // MEAN_LENGTH]})
        for length in options.sequence_lengths:
            figures = take_turns(loaders(directory, dataset, length, size), options.repeats)
            tables[f"tokens_per_second_{length}"] = table(
                f"Served, sequences of {length}, {size} per step", "tokens/s", figures, "ours"
            )
        opening = {
            f"from step {step:,}": partial(seconds, partial(ours, directory, 512, size, step, 10))
            for step in (0, 1_000, 1_000_000)
        }
        figures = take_turns(opening, options.repeats)
        tables["seconds_to_first_batch"] = table("Opening and the first batch", "s", figures, "from step 1,000,000")
    finish("loader", tables, tokens=options.tokens, batch_size=size)


if __name__ == "__main__":
    main()
