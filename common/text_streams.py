"""One way to open a file of text: unpacked as its suffix says, checked to be what it says, as lines of bytes.

    .gz .bz2 .xz .zst (any case, several members or frames)     the first bytes must agree with the suffix
    a byte order mark of UTF-8                                   removed at the beginning of every line, for files are
                                                                 also put together out of files that had one
    UTF-16, UTF-32, pointers of Git LFS                          refused as what they are

Truncated archives are errors, not short files. Memory: 64 KB, a line, and the window of a .zst frame (2 GB at most).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import zstandard

from common.errors import DataError
from common.folder_files import check_link, readable

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
MAGIC = {
    ".gz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ\x00",),
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))),
}
"""First bytes of each; of .zst also those of the sixteen skippable frames, with which parallel compressors begin."""
MARK = b"\xef\xbb\xbf"
WIDE_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
CHUNK = 2**16
PACKED_CHUNK = 2**13
"""Of .zst: little, because a kilobyte can unpack to thirty megabytes."""
LARGEST_WINDOW = 2**31
"""What `zstd --long=31` asks for; the format knows no larger one that a decoder has to support."""


def compression_of(name: str) -> str:
    """The suffix of a file's name that says how it is compressed; empty if it is not."""
    return next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")


def kind_of(name: str) -> str:
    """The suffix of a file's name in lower case, without that of its compression."""
    name = name.lower()
    return Path(name.removesuffix(compression_of(name))).suffix


def text_lines(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of an open file from its beginning, unpacked, without byte order marks.

    Raises:
        ValueError: the file is not what its suffix says, or not UTF-8 but a wider encoding; names it and the remedy.
        What the decompressors raise: see `damage_named`.
    """
    return map(_unmarked, text_stream(raw, path))


def text_stream(raw: BinaryIO, path: Path) -> BinaryIO:
    """The unpacked bytes of an open file, marks included. Raises as `text_lines` does."""
    compression = compression_of(path.name)
    _check_head(_head(raw), path, compression)
    if not compression:
        return raw
    stream: io.BufferedReader = io.BufferedReader(_unpacked(raw, path, compression), CHUNK)  # type: ignore[arg-type]
    _check_text(stream.peek(64)[:64], path)
    return stream


def check_plain(raw: BinaryIO, path: Path) -> None:
    """Raises ValueError as `text_lines` does for a file that is read in pieces, and leaves the place as it was."""
    place = raw.tell()
    raw.seek(0)
    _check_head(_head(raw), path, "")
    raw.seek(place)


def unmarked(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same lines, each without a byte order mark at its beginning."""
    return map(_unmarked, lines)


@contextmanager
def open_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a file, for `with`. Raises ValueError naming a damaged or disguised file, OSError a missing one."""
    check_link(path)
    with damage_named(path), path.open("rb") as raw:
        yield text_lines(raw, path)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns what the decompressors and Parquet raise on a damaged file into a ValueError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, pa.ArrowInvalid) as error:
        raise DataError(f"{readable(path)}: damaged or truncated ({error}); fetch or write it again") from error
    except OSError as error:  # the decompressors' own have no error number
        if error.errno is None:
            raise DataError(f"{readable(path)}: damaged or truncated ({error}); fetch or write it again") from error
        raise


def _unmarked(line: bytes) -> bytes:
    return line.removeprefix(MARK)


def _head(raw: BinaryIO) -> bytes:
    """The first bytes of an open file, which stays where it was."""
    place = raw.tell()
    head = raw.read(64)
    raw.seek(place)
    return head


def _unpacked(raw: BinaryIO, path: Path, compression: str) -> io.BufferedIOBase | io.RawIOBase:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if compression == ".bz2":
        return bz2.BZ2File(raw)
    if compression == ".xz":
        return lzma.LZMAFile(raw)
    return ZstdFrames(raw, path)


def _check_head(head: bytes, path: Path, compression: str) -> None:
    """Refuses a file whose first bytes are not those of its suffix."""
    if not head:
        return
    found = next((suffix for suffix, magics in MAGIC.items() if head.startswith(magics)), "")
    if found != compression:
        wanted = f"{compression} data" if compression else "plain text"
        is_ = f"{found} data" if found else "something else, perhaps unpacked already or a page that says why not"
        remedy = (
            f"rename it to end in {found}"
            if found
            else f"look at it; if it is text, remove {compression} from the name"
        )
        raise DataError(f"{readable(path)}: its name promises {wanted}, but it holds {is_}; {remedy}")
    if not compression:
        _check_text(head, path)


def _check_text(head: bytes, path: Path) -> None:
    """Refuses text that is not UTF-8 by its first bytes."""
    name = readable(path)
    if head.startswith(LFS_POINTER):
        raise DataError(f"{name}: a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    encoding = next((encoding for mark, encoding in WIDE_MARKS.items() if head.startswith(mark)), "")
    if not encoding and len(head) >= 8:  # without a mark: every second byte of Latin text is zero
        halves = head[: len(head) & ~1][0::2], head[: len(head) & ~1][1::2]
        if any(not any(half) for half in halves) and any(head):
            encoding = "UTF-16"
    if encoding:
        raise DataError(
            f"{name}: is {encoding}, not UTF-8; convert it, for example: iconv -f {encoding} -t UTF-8 OLD > NEW"
        )


class ZstdFrames(io.RawIOBase):
    """The content of a .zst file of any number of frames. Unlike zstandard's own reader it notices a missing end.

    Raises:
        EOFError: the file ends within a frame.
        ValueError: a frame asks for a window of more than 2 GB; names `path`.
    """

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        self._raw, self._path = raw, path
        self._options = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer as far as one step of decompression does."""
        while not self._ready:
            self._packed = self._packed or self._raw.read(PACKED_CHUNK)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            if self._frame is None:
                self._packed += self._raw.read(18) if len(self._packed) < 18 else b""
                self._check_window()
                self._frame = self._options.decompressobj()
            self._ready = memoryview(self._frame.decompress(self._packed))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _check_window(self) -> None:
        try:
            window = zstandard.get_frame_parameters(self._packed).window_size
        except zstandard.ZstdError:
            return  # no frame at all, which the decompressor says better
        if window > LARGEST_WINDOW:
            raise DataError(
                f"{readable(self._path)}: was compressed with a window of {window:,} bytes, and at most"
                f" {LARGEST_WINDOW:,} are read; pack it again with zstd --long=27"
            )
