"""`WriteShard`: the datatrove step that encodes documents and writes one `.ds` shard.

It takes the place of datatrove's `DocumentTokenizer`, which writes the same two files but does not count text bytes,
and leaves a half-written file under its final name when a task is killed. Here a shard appears under its name only when
it is complete and on the disk.
"""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from common.atomic_files import fsync, owned_name
from common.token_shards import INDEX_DTYPE, ShardMeta, token_bytes_for
from data_pipeline.errors import PrepareError
from data_pipeline.shards.encoding import Encoding
from data_pipeline.shards.workspace import Workspace


class WriteShard(PipelineStep):
    """Writes the documents of part `rank`, encoded, as `OUTPUT/{rank:05d}.ds` and `.ds.index`.

    Args:
        workspace: where the tokenizer is and the report goes; the shard goes beside it.
        vocab_size: decides the width of an id.
        encoding: how documents become ids.
    """

    name = "Write shard"
    type = "🔢 - TOKENIZER"

    def __init__(self, workspace: str, vocab_size: int, encoding: Encoding):
        super().__init__()
        self.workspace = workspace
        self.vocab_size = vocab_size
        self.encoding = encoding

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Consume `data`, and leave a shard and its report. A part without documents leaves only the report.

        Raises PrepareError when the disk is full; the unfinished shard is removed then, as after any error.
        """
        workspace = Workspace(Path(self.workspace))
        encode = self.encoding.open(workspace.tokenizer)
        dtype = np.dtype(f"<u{token_bytes_for(self.vocab_size)}")
        with full_disk_named(workspace.output), ShardWriter(workspace.output, rank, dtype) as writer:
            for batch in _batches(data, self.encoding):
                writer.write(*encode(batch))
                workspace.progress(rank).write_text(str(batch[-1].metadata["consumed"]))
            shard = writer.publish()
            self.stat_update("tokens", value=shard.tokens)
            workspace.shard_report(rank).write_text(json.dumps(asdict(shard)), encoding="utf-8")


class ShardWriter:
    """Writes one shard under temporary names, which leaving the context removes unless `publish` was called.

    Args:
        output: directory of the shards.
        rank: number of the shard.
        dtype: type of a stored id.
    """

    def __init__(self, output: Path, rank: int, dtype: np.dtype):
        self.path = output / f"{rank:05d}.ds"
        self.index = output / f"{rank:05d}.ds.index"
        # Names of its own: a worker that outlives a killed call never writes into the next call's file.
        self._temporary, self._temporary_index = owned_name(self.path), owned_name(self.index)
        self._dtype = dtype
        self._file = self._temporary.open("wb")
        self._digest = hashlib.sha256()
        self._ends: list[int] = []
        self._tokens = 0
        self._raw_bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.unlink(missing_ok=True)
        self._temporary_index.unlink(missing_ok=True)
        self._file.close()

    def write(self, documents: Sequence[Sequence[int]], raw_bytes: int) -> None:
        """Append documents, special tokens included, that stand for so many raw bytes of text or pixels."""
        self._raw_bytes += raw_bytes
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        self._ends.extend((self._tokens + np.cumsum(lengths)).tolist())
        self._tokens += int(lengths.sum())
        block = np.fromiter(chain.from_iterable(documents), self._dtype, int(lengths.sum())).tobytes()
        self._digest.update(block)
        self._file.write(block)

    def publish(self) -> ShardMeta:
        """Flush to the disk and rename; an empty shard gets no file. Replaces an earlier shard of this number."""
        index = np.array(self._ends, INDEX_DTYPE).tobytes()
        self._file.flush()
        fsync(self._temporary)
        self._temporary_index.write_bytes(index)
        fsync(self._temporary_index)
        if self._ends:
            self._temporary_index.replace(self.index)
            self._temporary.replace(self.path)
        return ShardMeta(
            file=self.path.name,
            tokens=self._tokens,
            documents=len(self._ends),
            bytes=self._raw_bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )


@contextmanager
def full_disk_named(output: Path) -> Iterator[None]:
    """Turns "no space left" into a PrepareError that says where, and that nothing finished is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PrepareError(
            f"{output}: no space left on its disk ({error.strerror}); the shards are incomplete and no meta.json was"
            " written; free some space and give the same command again, finished parts are kept"
        ) from error


def _batches(data: Iterable[Document], encoding: Encoding) -> Iterator[list[Document]]:
    """Documents in batches of the encoding's size."""
    batch: list[Document] = []
    size = 0
    for document in data:
        batch.append(document)
        size += encoding.size_of(document)
        if size >= encoding.batch_size:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
