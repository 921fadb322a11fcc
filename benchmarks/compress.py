"""How fast a corpus is counted, and what compression keeps: `python benchmarks/compress.py`.

    count         MB of text a second on one core, as `python -m tokenizer compress` counts it, beside encoding the same
                  text with the same tokenizer and counting the ids (a sample of the corpus, in turns)
    rest          seconds of everything else (select, cut, prove, write), which does not grow with the corpus
    coverage      share of the corpus's tokens that stay, with closure and by the published procedure
    unreachable   kept pieces that nothing can be encoded to any more, the same two
    bytes/token   of each sample, before and after, and texts that do not survive encoding and decoding

Default: a tokenizer of 16,384 pieces trained on the quick start's corpus, halved. Any other, several in a row:

    python benchmarks/compress.py --corpus en=train.en.jsonl zh=train.zh.jsonl --sample en=valid.en.jsonl \
        zh=valid.zh.jsonl --case SmolLM2=DIRECTORY=16384=en InternLM=tokenizer.model=48000=en,zh
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from measure import finish, table, take_turns

from data_pipeline.demo.text import SampleConfig, sample
from data_pipeline.shards.executors import quiet
from tokenizer.compression.compress import compress, count_corpus
from tokenizer.compression.compress_config import CompressConfig
from tokenizer.compression.counting import PART_BYTES, count_texts
from tokenizer.compression.sliceable import SliceableTokenizer, open_sliceable
from tokenizer.fingerprint import tokenizer_hash
from tokenizer.inputs.broken_text import TextCheck
from tokenizer.inputs.documents import list_files, read_documents
from tokenizer.load import load_tokenizer
from tokenizer.train import TrainConfig, train_tokenizer

TURNS = 3


def measure_case(name: str, config: CompressConfig) -> dict[str, Any]:
    """Counts on one core, then compresses with closure and without, from the counts."""
    loaded = load_tokenizer(config.tokenizer)
    donor = open_sliceable(config.tokenizer, loaded)
    with redirect_stderr(StringIO()):
        started = time.perf_counter()
        counts = count_corpus(config, donor, tokenizer_hash(loaded), Path(str(config.counts)))
        counted = time.perf_counter()
        closed = compress(config)
        finished = time.perf_counter()
        published = compress(replace(config, closure=False))
    row = {
        "donor": name,
        "format": closed.format,
        "from": closed.donor_vocab_size,
        "to": closed.vocab_size,
        "megabytes": counts.bytes / 1e6,
        "count_mb_per_second": counts.bytes / 1e6 / (counted - started),
        "rest_seconds": finished - counted,
        "coverage": closed.coverage,
        "published_coverage": published.coverage,
        "ancestors": closed.ancestors,
        "unreachable": len(closed.lost),
        "published_unreachable": len(published.lost),
        "published_unreachable_uses": sum(piece.count for piece in published.lost),
        "tokens": closed.tokens,
    }
    print(
        f"\n{name}: {row['from']:,} -> {row['to']:,} ({row['format']})\n"
        f"  counted {row['megabytes']:.1f} MB at {row['count_mb_per_second']:.2f} MB/s on one core;"
        f" {row['rest_seconds']:.0f} s for the rest\n"
        f"  with closure:        coverage {row['coverage']:.3%}, {row['unreachable']:,} kept pieces unreachable;"
        f" {row['ancestors']:,} pieces kept for closure\n"
        f"  published procedure: coverage {row['published_coverage']:.3%}, {row['published_unreachable']:,} kept pieces"
        f" unreachable ({row['published_unreachable_uses'] / row['tokens']:.2%} of the tokens)"
    )
    for label, old in closed.before.items():
        fits = {"donor": old, "closure": closed.after[label], "published": published.after[label]}
        row[label] = {
            key: {"bytes_per_token": fit.bytes_per_token, "round_trip_failures": fit.round_trip_failures}
            for key, fit in fits.items()
        }
        sizes = [f"{fit.bytes_per_token:.3f}" for fit in fits.values()]
        failures = [str(fit.round_trip_failures) for fit in fits.values()]
        print(
            f"  {label}: {sizes[0]} -> {sizes[1]} bytes per token (published procedure {sizes[2]}); texts that do not"
            f" survive encoding and decoding: {failures[0]} -> {failures[1]} (published procedure {failures[2]})"
        )
    row["speed"] = measure_speed(config, donor)
    return row


def measure_speed(config: CompressConfig, donor: SliceableTokenizer) -> dict[str, Any]:
    """Counting one part of the corpus, and encoding it text by text, in turns."""
    texts, size = [], 0
    for document in (
        found for file in list_files(config.corpus) for found in read_documents(file, "text", TextCheck("refuse"))
    ):
        texts.append(document.text)
        size += len(document.text.encode())
        if size > PART_BYTES:
            break
    encode = donor.encoder()

    def count() -> float:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            count_texts(texts, donor, Path(folder), 1)
            return size / 1e6 / (time.perf_counter() - started)

    def plainly() -> float:
        started = time.perf_counter()
        total = np.zeros(len(donor.names), dtype=np.int64)
        for start in range(0, len(texts), 256):
            for ids in encode(texts[start : start + 256]):
                total += np.bincount(ids, minlength=len(total))
        return size / 1e6 / (time.perf_counter() - started)

    with redirect_stderr(StringIO()):
        figures = take_turns({"compress": count, "encode, then count": plainly}, TURNS)
    return table(f"{size / 1e6:.0f} MB counted on one core", "MB/s", figures, "compress")


def corpus_of(files: Mapping[str, list[str]], labels: str) -> list[str]:
    """The files of some labels (`en,zh`; none: of all)."""
    return [file for label in files if label in (labels or label).split(",") for file in files[label]]


def labelled(entries: list[str]) -> dict[str, list[str]]:
    """`label=PATH` arguments, by label."""
    files: dict[str, list[str]] = {}
    for entry in entries:
        label, _, path = entry.partition("=")
        files.setdefault(label, []).append(path)
    return files


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", help="NAME=TOKENIZER=SIZE[=LABELS of corpora]; default: a trained one")
    parser.add_argument("--corpus", nargs="+", help="LABEL=FILE: tokens are counted; default: the built-in corpus")
    parser.add_argument("--sample", nargs="+", default=[], help="LABEL=FILE: texts to compare on")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        corpora, samples, cases = labelled(options.corpus or []), labelled(options.sample), options.case
        if not corpora:
            with quiet(), redirect_stderr(StringIO()):
                sample(SampleConfig(output=folder))
            corpora = {path.suffixes[0][1:]: [str(path)] for path in sorted(Path(folder).glob("train.*.jsonl"))}
            samples = {path.suffixes[0][1:]: [str(path)] for path in sorted(Path(folder).glob("valid.*.jsonl"))}
        if not cases:
            with quiet(), redirect_stderr(StringIO()):
                train_tokenizer(TrainConfig(corpus_of(corpora, ""), f"{folder}/tokenizer", vocab_size=16_384))
            cases = [f"trained here={folder}/tokenizer=8192"]
        rows = []
        for number, case in enumerate(cases):
            name, path, size, labels = [*case.split("="), ""][:4]
            compared = [f"{label}={file}" for label in samples for file in corpus_of({label: samples[label]}, labels)]
            work = f"{folder}/{number}"
            config = CompressConfig(path, corpus_of(corpora, labels), int(size), f"{work}.out", sample=compared)
            rows.append(measure_case(name, replace(config, counts=f"{work}.counts", workers=1)))
    finish("compress", {"compress": rows})


if __name__ == "__main__":
    main()
