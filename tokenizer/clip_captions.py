"""What a recogniser has read, as tokens of CLIP's text encoder (docs/methods/ocr.md: CLIP4STR).

    ids of characters --> "Café" --> "caf" (charset of captions) --> [SOT] caf [EOT] 0 0 ...      16 ids

The tokens are CLIP's byte-pair encoding, from the file that openai/CLIP publishes, or single bytes where a small model
is trained from scratch. Padding is id 0, as in openai/CLIP.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import InputError
from tokenizer.characters import CharacterTokenizer, adapt_to_charset, check_charset

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
"""Name of the file at openai/CLIP, and of the copy that a checkpoint holds."""
MERGES = 49_408 - 2 * 256 - 2
"""Merges that CLIP takes from it: its first 48,894."""
REMEMBERED = 1 << 16
"""Captions whose tokens are kept: most words are read again and again."""


class CaptionError(InputError, ValueError):
    """A file of merges that cannot be used."""


class CaptionEncoding(Protocol):
    """Text to tokens."""

    size: int
    """Ids; [SOT] and [EOT] are the last two."""
    fingerprint: str
    """Names the vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Ids without [SOT] and [EOT]."""


class ByteEncoding:
    """UTF-8 bytes: no file, no pre-trained text encoder either."""

    size = 256 + 2
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))


class ClipEncoding:
    """CLIP's byte-pair encoding.

    Args:
        path: `bpe_simple_vocab_16e6.txt.gz`, or the same unpacked.

    Raises:
        CaptionError: there is no such file, or it holds something else; names the line.
    """

    size = 49_408

    def __init__(self, path: str | Path) -> None:
        from transformers import CLIPTokenizer
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        merges = _read_merges(Path(path))
        letters = list(bytes_to_unicode().values())
        tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
        vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
        if len(vocabulary) != self.size:
            raise CaptionError(f"{path}: two merges give the same token; not the merges of CLIP")
        try:
            self._tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
        except Exception as error:  # tokenizers raises plain Exception: a merge of tokens that do not exist
            raise CaptionError(f"{path}: not the merges of CLIP ({error})") from None
        self.fingerprint = hashlib.sha256("\n".join(map(" ".join, merges)).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The first 48,894 merges; the first line is a comment."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            next(lines, "")
            merges = []
            for number, line in zip(range(2, MERGES + 2), lines, strict=False):
                pair = line.split()
                if len(pair) != 2:
                    raise CaptionError(f"{path}: line {number}: expected two tokens, found {line[:40]!r}")
                merges.append((pair[0], pair[1]))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CaptionError(f"{path}: cannot be read as CLIP's merges ({type(error).__name__}: {error})") from None
    if len(merges) < MERGES:
        raise CaptionError(f"{path}: holds {len(merges):,} merges; CLIP takes {MERGES:,}")
    return merges


class CaptionTokenizer:
    """Ids of characters to ids of the text encoder.

    Args:
        characters: what the recogniser predicts.
        charset: what captions may hold; 36 characters make them lower-case.
        bpe: CLIP's file of merges; None: bytes.
        length: ids of a caption, [SOT] and [EOT] included.
    """

    def __init__(self, characters: CharacterTokenizer, charset: str, bpe: str | Path | None, length: int = 16) -> None:
        self.characters, self.charset, self.bpe, self.length = characters, check_charset(charset, "given"), bpe, length
        self.encoding: CaptionEncoding = ByteEncoding() if bpe is None else ClipEncoding(bpe)
        self.caption = lru_cache(REMEMBERED)(self._caption)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """int64 [..., L] (what is predicted, without [B]) to int64 [..., `length`]."""
        flat = ids.reshape(-1, ids.shape[-1])
        captions = [self.caption(adapt_to_charset(self.characters.decode(row), self.charset)[0]) for row in flat]
        return np.array(captions, dtype=np.int64).reshape(*ids.shape[:-1], self.length)

    def _caption(self, text: str) -> tuple[int, ...]:
        """[SOT], as many tokens as fit, [EOT], padding."""
        begin, end = self.encoding.size - 2, self.encoding.size - 1
        tokens = (begin, *self.encoding.encode(text)[: self.length - 2], end)
        return tokens + (0,) * (self.length - len(tokens))
