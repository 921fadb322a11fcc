"""How fast a corpus is counted, and what compression keeps: `python benchmarks/compress.py`.

    count         MB of text a second on one core, as `python -m tokenizer compress` counts it
    select, cut, prove, write    seconds of everything else, which does not grow with the corpus
    coverage      share of the corpus's tokens that stay, with closure and by the published procedure
    lost          kept pieces that nothing can be encoded to any more, the same two
    bytes/token   of each sample, before and after

Default: a tokenizer of 16,384 pieces trained on the quick start's corpus, halved. Any other:

    python benchmarks/compress.py --case internlm/tokenizer.model=48000 --corpus train.en.jsonl train.zh.jsonl \
        --sample en=valid.en.jsonl zh=valid.zh.jsonl
"""

import argparse
import os
import tempfile
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from measure import finish

from data_pipeline.executors import quiet
from data_pipeline.sample import SampleConfig, sample
from tokenizer import TrainConfig, load_tokenizer, tokenizer_hash, train_tokenizer
from tokenizer.compress import compress, count_corpus
from tokenizer.compress_config import CompressConfig
from tokenizer.sliceable import open_sliceable


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
        published = compress(CompressConfig(**{**vars(config), "closure": False}))
    row = {
        "donor": name,
        "format": closed.format,
        "from": closed.donor_vocab_size,
        "to": closed.vocab_size,
        "megabytes": counts.bytes / 1e6,
        "count_mb_per_second": counts.bytes / 1e6 / (counted - started),
        "other_seconds": finished - counted,
        "coverage": closed.coverage,
        "published_coverage": published.coverage,
        "ancestors": closed.ancestors,
        "lost": len(closed.lost),
        "published_lost": len(published.lost),
        "published_lost_uses": sum(piece.count for piece in published.lost),
        "tokens": closed.tokens,
        "bytes_per_token": {
            label: (old.bytes_per_token, closed.after[label].bytes_per_token, published.after[label].bytes_per_token)
            for label, old in closed.before.items()
        },
        "round_trip_failures": {
            label: (old.round_trip_failures, closed.after[label].round_trip_failures)
            for label, old in closed.before.items()
        },
    }
    print(
        f"{name}: {row['from']:,} -> {row['to']:,} ({row['format']})\n"
        f"  counted {row['megabytes']:.1f} MB at {row['count_mb_per_second']:.2f} MB/s on one core;"
        f" {row['other_seconds']:.0f} s for the rest\n"
        f"  with closure:        coverage {row['coverage']:.3%}, {row['lost']:,} kept pieces unreachable;"
        f" {row['ancestors']:,} pieces kept for closure\n"
        f"  published procedure: coverage {row['published_coverage']:.3%}, {row['published_lost']:,} kept pieces"
        f" unreachable ({row['published_lost_uses'] / row['tokens']:.2%} of the tokens)"
    )
    for label, (old, new, open_) in row["bytes_per_token"].items():
        before, after = row["round_trip_failures"][label]
        print(
            f"  {label}: {old:.3f} -> {new:.3f} bytes per token (published procedure {open_:.3f});"
            f" texts that do not survive encoding and decoding: {before} -> {after}"
        )
    print(flush=True)
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="TOKENIZER=SIZE; default: a trained one")
    parser.add_argument("--name", help="of the tokenizer, in the table")
    parser.add_argument("--corpus", nargs="+", help="files whose tokens are counted; default: the built-in corpus")
    parser.add_argument("--sample", nargs="+", default=[], help="label=PATH: texts to compare on")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        corpus, compared, case = options.corpus, options.sample, options.case
        if not corpus:
            with quiet(), redirect_stderr(StringIO()):
                sample(SampleConfig(output=folder))
            corpus = sorted(str(path) for path in Path(folder).glob("train.*.jsonl"))
            compared = [f"{path.suffixes[0][1:]}={path}" for path in sorted(Path(folder).glob("valid.*.jsonl"))]
        if not case:
            with quiet(), redirect_stderr(StringIO()):
                train_tokenizer(TrainConfig(corpus, f"{folder}/tokenizer", vocab_size=16_384))
            case = f"{folder}/tokenizer=8192"
        path, _, size = case.rpartition("=")
        config = CompressConfig(
            path, corpus, int(size), f"{folder}/out", sample=compared, counts=f"{folder}/counts", workers=1
        )
        row = measure_case(options.name or Path(path).name, config)
    finish("compress", {"compress": row})


if __name__ == "__main__":
    main()
