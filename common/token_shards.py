"""`meta.json`: what a directory of token shards says about itself.

    corpus/
      00000.ds         flat little-endian uint16 or uint32 token ids: <s> text </s> <s> text </s> ...
      00000.ds.index   little-endian uint64: where each document ends, in tokens from the beginning of the shard
      ...
      tokenizer/       a copy of the tokenizer that made the ids
      meta.json        this file; written last, so a directory without one is unfinished

Shards of images are the same: a document is then a record of one or several images, the ids of each in raster order,
without bos and eos.

`.ds` and `.ds.index` are datatrove's formats; its own readers open them too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from common.atomic_files import write_json
from common.errors import ShardError
from common.untrusted_files import is_plain_name, read_json, typed

META_FILE = "meta.json"
FORMAT_VERSION = 1
INDEX_DTYPE = np.dtype("<u8")


@dataclass(frozen=True)
class ShardMeta:
    """One `.ds` file."""

    file: str
    """File name inside the directory."""
    tokens: Annotated[int, Ge(1)]
    """Number of tokens."""
    documents: Annotated[int, Ge(1)]
    """Number of documents."""
    bytes: Annotated[int, Ge(0)]
    """UTF-8 bytes of the documents' text; of images, the bytes of their RGB pixels."""
    sha256: str
    """Checksum of the `.ds` file."""
    index_sha256: str
    """Checksum of the `.ds.index` file."""


@dataclass(frozen=True)
class RejectExample:
    """One rejected document, so that a reader can find and judge it."""

    file: str
    """Input file or data set."""
    line: int
    """Line or row, from 1."""
    excerpt: str
    """The beginning of what was found there."""


@dataclass(frozen=True)
class Rejected:
    """How often one reason led to a rejection."""

    count: int
    """Number of documents."""
    examples: list[RejectExample]
    """The first few."""


@dataclass(frozen=True)
class Meta:
    """The content of meta.json."""

    tokenizer_hash: str
    """`tokenizer.fingerprint.tokenizer_hash` of the tokenizer that made the ids."""
    vocab_size: Annotated[int, Ge(1)]
    """Every token id is below this."""
    token_bytes: int
    """2 (uint16) or 4 (uint32)."""
    bos_token_id: int | None
    """First token of every document: bos, or eos where the tokenizer has none; None: images, which have neither."""
    eos_token_id: int | None
    """Last token of every document; None: images."""
    shards: list[ShardMeta]
    """The shards in reading order; none is empty."""
    rejected: dict[str, Rejected] = field(default_factory=dict)
    """By reason: documents of the input that are not in the shards."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """What the shards were made from: `prepare` compares it before it writes to an existing directory."""
    altered: dict[str, Rejected] = field(default_factory=dict)
    """By reason: documents that are in the shards, but not as they were found."""
    format_version: int = FORMAT_VERSION
    """Version of this layout."""

    @property
    def tokens_per_image(self) -> int | None:
        """Ids of one image; None: these are shards of text."""
        tokenizer = self.inputs.get("tokenizer")
        return tokenizer.get("tokens_per_image") if isinstance(tokenizer, Mapping) else None

    @property
    def tokens(self) -> int:
        """Tokens in all shards, bos and eos included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents' text, or bytes of all images' pixels."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Text bytes per token of the stream, bos and eos counted as tokens."""
        return self.bytes / self.tokens

    @property
    def bytes_per_label(self) -> float:
        """Text bytes per *predicted* token (a document's first is never a label): mean loss / ln 2 / this = bits per
        byte."""
        return self.bytes / (self.tokens - self.documents)

    @property
    def content(self) -> str:
        """sha256 over the tokenizer's hash and all checksums: the same for the same shards, wherever they lie."""
        sums = [[shard.tokens, shard.sha256, shard.index_sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps([self.tokenizer_hash, sums]).encode()).hexdigest()

    @property
    def dtype(self) -> np.dtype:
        """NumPy type of a token id in the shards."""
        return np.dtype(f"<u{self.token_bytes}")

    def save(self, directory: Path) -> None:
        """Write meta.json in one atomic step; the totals are written too, for human readers."""
        totals = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}
        write_json(directory / META_FILE, {"format_version": self.format_version, **totals, **asdict(self)})

    @classmethod
    def load(cls, directory: str | Path) -> "Meta":
        """Read and check meta.json.

        Raises:
            FileNotFoundError: no such directory.
            ShardError: no meta.json, or one that is broken, of another version, or that contradicts itself.
        """
        path = Path(directory) / META_FILE
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"{directory}: no such directory; give the --output of `python -m data_pipeline prepare`"
            )
        if not path.is_file():
            raise ShardError(
                f"{path}: not found, so {directory} is not a finished shard directory;"
                " run `python -m data_pipeline prepare` (the same call again continues an interrupted one)"
            )
        content = read_json(path, lambda message: ShardError(f"{message}; prepare again"))
        if not isinstance(content, dict) or "format_version" not in content:
            raise ShardError(
                f"{path}: expected a JSON object with format_version, found {type(content).__name__}; prepare again"
            )
        if (version := content["format_version"]) != FORMAT_VERSION:
            raise ShardError(f"{path}: expected format_version {FORMAT_VERSION}, found {version!r}; prepare again")
        meta = typed(cls, content, f"{path}: field missing or of the wrong type", ShardError)
        meta._check(path, content)
        return meta

    def check_files(self, directory: Path) -> None:
        """Compare the shards' sizes with what is said here; costs two look-ups per shard.

        Raises ShardError when a file is missing, truncated or too long.
        """
        for shard in self.shards:
            expected_sizes = {
                shard.file: shard.tokens * self.token_bytes,
                f"{shard.file}.index": shard.documents * INDEX_DTYPE.itemsize,
            }
            for file, expected in expected_sizes.items():
                path = directory / file
                if not path.is_file():
                    raise ShardError(f"{path}: named in meta.json but missing; copy it again or prepare again")
                found = path.stat().st_size
                if found != expected:
                    what = "truncated" if found < expected else "longer than meta.json says"
                    raise ShardError(
                        f"{path}: {what}: expected {expected} bytes, found {found}; copy it again or prepare again"
                    )

    def map_tokens(self, directory: Path, shard: ShardMeta) -> np.memmap:
        """The token ids of one shard [tokens], mapped into memory; `check_files` first."""
        return np.memmap(directory / shard.file, self.dtype, mode="r")

    def map_ends(self, directory: Path, shard: ShardMeta) -> np.memmap:
        """Where each document of one shard ends, from the shard's beginning: uint64 [documents], mapped."""
        return np.memmap(directory / f"{shard.file}.index", INDEX_DTYPE, mode="r")

    def _check(self, path: Path, content: Mapping[str, Any]) -> None:
        if self.token_bytes not in (2, 4):
            raise ShardError(f"{path}: expected token_bytes 2 or 4, found {self.token_bytes!r}; prepare again")
        if self.vocab_size > 256**self.token_bytes:
            raise ShardError(
                f"{path}: vocabulary of {self.vocab_size} does not fit into token_bytes {self.token_bytes}"
                f" (at most {256**self.token_bytes}); prepare again"
            )
        for name in ("tokens", "documents", "bytes"):
            if content.get(name) != getattr(self, name):
                raise ShardError(
                    f"{path}: {name} is {content.get(name)!r} but the shards add up to {getattr(self, name)};"
                    " the file was altered, prepare again"
                )
        for shard in self.shards:
            if not is_plain_name(shard.file):
                raise ShardError(f"{path}: shard {shard.file!r} is not a plain file name; shards lie beside meta.json")
            if shard.documents > shard.tokens:
                raise ShardError(f"{path}: {shard.file} has more documents than tokens; prepare again")
        for name in ("bos_token_id", "eos_token_id"):
            if (token := getattr(self, name)) is not None and not 0 <= token < self.vocab_size:
                raise ShardError(f"{path}: {name} is {token}, outside the vocabulary of {self.vocab_size}")
        length = self.tokens_per_image
        if length is not None and (type(length) is not int or length < 1):
            raise ShardError(f"{path}: inputs.tokenizer.tokens_per_image is {length!r}, expected at least 1")


def is_shard_directory(path: Path) -> bool:
    """Whether a directory holds finished shards."""
    return (path / META_FILE).is_file()


def token_bytes_for(vocab_size: int) -> int:
    """Bytes per stored token id: 2 while every id fits into uint16, else 4."""
    return 2 if vocab_size <= 2**16 else 4


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
