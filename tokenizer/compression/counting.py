"""How often a corpus uses each id: streamed, in worker processes, resumable, in bounded memory.

    texts -> parts of 8 MB -> a worker encodes and counts -> COUNTS/<key>.npz    the key is a hash of the part's text
                                                             and of the tokenizer

A part whose file exists is not encoded again: an interrupted call goes on where it was (it reads the text again, at
a hundred times the speed of encoding), a corpus that grew costs what is new, other sizes of vocabulary cost nothing.

Token shards need no encoding at all: their ids are counted as they lie on the disk.
"""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from common.atomic_files import owned_name
from common.errors import InputError
from common.processes import WorkerContext, end_with_parent
from common.token_shards import Meta
from tokenizer.compression.sliceable import SliceableTokenizer, open_saved_encoder
from tokenizer.compression.stretches import count_stretches, cuts_independently

PART_BYTES = 8_000_000
SHARD_BLOCK = 2**22
"""Ids of a shard that are looked at together."""


class CountingError(InputError, ValueError):
    """A corpus that cannot be counted: no text, or shards of another tokenizer or of images."""


@dataclass(frozen=True)
class Counts:
    """What was counted."""

    per_id: np.ndarray
    """Occurrences of every id, [V] int64; without the bos and eos that shards put around documents."""
    documents: int
    bytes: int
    """UTF-8 bytes of the text."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.per_id + other.per_id, self.documents + other.documents, self.bytes + other.bytes)

    @classmethod
    def none(cls, vocab_size: int) -> "Counts":
        """Nothing counted yet."""
        return cls(np.zeros(vocab_size, dtype=np.int64), 0, 0)


def count_texts(texts: Iterable[str], tokenizer: SliceableTokenizer, folder: Path, workers: int) -> Counts:
    """Counts the ids of many texts.

    Args:
        texts: documents; read once, a part at a time.
        tokenizer: what encodes them.
        folder: for the counts of finished parts.
        workers: processes; 1 counts in this one.

    Raises:
        CountingError: a worker was killed. Counts of finished parts are kept.
    """
    name, content = tokenizer.encoder_file
    key = hashlib.sha256(content).hexdigest()
    folder = folder / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / name, content)
    parts = ((part, folder / f"{_part_key(part)}.npz") for part in _parts(texts))
    count = partial(_count_part, str(folder / name), len(tokenizer.names))
    if workers == 1:
        return sum((count(*part) for part in parts), Counts.none(len(tokenizer.names)))
    try:
        with ProcessPoolExecutor(workers, WorkerContext(), end_with_parent) as pool:
            return sum(_in_order(pool, count, parts, workers), Counts.none(len(tokenizer.names)))
    except BrokenProcessPool as error:
        raise CountingError(
            "a worker process was killed, probably for want of memory; use fewer workers, and give the same command"
            " again: what was counted is kept"
        ) from error


def count_shards(directory: Path, tokenizer_hash: str, vocab_size: int) -> Counts:
    """Counts the ids in the shards that `python -m data_pipeline prepare` wrote (meta.json beside .ds files).

    Raises:
        ShardError: the shards are truncated or damaged.
        CountingError: shards of another tokenizer or of images, or ids outside the vocabulary.
    """
    meta = Meta.load(directory)
    meta.check_files(directory)
    if meta.tokenizer_hash != tokenizer_hash:
        raise CountingError(
            f"{directory}: these shards were made by tokenizer {meta.tokenizer_hash[:12]}, not by the one to"
            f" compress, {tokenizer_hash[:12]}; give the text, or that tokenizer ({directory / 'tokenizer'})"
        )
    total = np.zeros(vocab_size, dtype=np.int64)
    for shard in tqdm(meta.shards, desc="count shards", unit="shard"):
        ids = meta.map_tokens(directory, shard)
        for start in range(0, len(ids), SHARD_BLOCK):
            block = np.bincount(ids[start : start + SHARD_BLOCK], minlength=vocab_size)
            if len(block) > vocab_size:
                raise CountingError(
                    f"{directory / shard.file}: holds token {len(block) - 1}, outside the vocabulary of"
                    f" {vocab_size}; the file was altered, prepare again"
                )
            total += block
    for token in (meta.bos_token_id, meta.eos_token_id):
        if token is None or token >= vocab_size:
            raise CountingError(
                f"{directory}: meta.json gives {token} as the first or last token of a document, expected one of"
                f" {vocab_size} ids; shards of images cannot be counted"
            )
        total[token] -= meta.documents
    return Counts(total, meta.documents, meta.bytes)


def shard_texts(directory: Path, backend: Tokenizer, budget: int) -> Iterator[str]:
    """Texts of documents spread evenly over the shards, decoded; about `budget` tokens of them."""
    meta = Meta.load(directory)
    meta.check_files(directory)
    for shard in meta.shards:
        ids = meta.map_tokens(directory, shard)
        ends = meta.map_ends(directory, shard).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        for number in np.unique(
            np.linspace(0, len(ends) - 1, min(len(ends), max(1, len(ends) * budget // meta.tokens)), dtype=np.int64)
        ):
            document = ids[starts[number] + 1 : ends[number] - 1]
            if len(document):
                yield backend.decode(document.tolist(), skip_special_tokens=False)


def _in_order(
    pool: ProcessPoolExecutor,
    count: Callable[[list[str], Path], Counts],
    parts: Iterator[tuple[list[str], Path]],
    workers: int,
) -> Iterator[Counts]:
    """Counts of all parts; no more than twice as many parts as workers are in memory."""
    waiting: deque[Future[Counts]] = deque()
    for part in parts:
        waiting.append(pool.submit(count, *part))
        if len(waiting) >= 2 * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _count_part(encoder_file: str, vocab_size: int, texts: list[str], file: Path) -> Counts:
    """One part, from its file or by encoding."""
    if file.is_file():
        with np.load(file) as saved:
            per_id = np.zeros(vocab_size, dtype=np.int64)
            per_id[saved["ids"]] = saved["counts"]
            return Counts(per_id, int(saved["documents"]), int(saved["bytes"]))
    per_id = _counter(encoder_file, vocab_size)(texts)
    used = np.flatnonzero(per_id)
    counts = Counts(per_id, len(texts), sum(len(text.encode()) for text in texts))
    content = io.BytesIO()
    np.savez(content, ids=used, counts=per_id[used], documents=counts.documents, bytes=counts.bytes)
    _write(file, content.getvalue())
    return counts


@cache
def _counter(encoder_file: str, vocab_size: int) -> Callable[[list[str]], np.ndarray]:
    """Texts -> occurrences of every id; opened once in each process, for the folder's name is a hash of the file."""
    file = Path(encoder_file)
    encode = open_saved_encoder(file)
    if file.suffix == ".json" and cuts_independently(Tokenizer.from_file(encoder_file)):
        return partial(count_stretches, encode=encode, vocab_size=vocab_size)
    return lambda texts: np.bincount(np.fromiter(chain.from_iterable(encode(texts)), np.int64), minlength=vocab_size)


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text.encode())
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _part_key(texts: list[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """In one step, whoever else writes the same file; not forced to disk, for it can be made again."""
    partial = owned_name(path)
    partial.write_bytes(content)
    partial.replace(path)
