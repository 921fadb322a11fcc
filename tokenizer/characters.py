"""Words as characters: the vocabulary of text recognition (docs/methods/ocr.md: characters).

    id 0                [E], the end of a word
    ids 1 .. N          the characters of the charset, in its order
    id N + 1            [B], the beginning: an input, never predicted
    id N + 2            [P], padding: an input, never predicted

What is predicted, [E] and the characters, comes first, so logits need no shift.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.text_streams import open_lines

CHARSETS = {
    "36": string.digits + string.ascii_lowercase,
    "62": string.digits + string.ascii_letters,
    "94": string.digits + string.ascii_letters + string.punctuation,
}
"""The charsets of scene-text recognition, by the number of their characters; the order fixes the ids."""


class CharsetError(InputError, ValueError):
    """A charset that cannot be used, or text outside of it."""


def read_charset(name: str) -> str:
    """The characters of a named charset (36, 62, 94), or of a UTF-8 text file, in its order.

    Line ends separate, so a file may have a character a line or all in one. A space is a character like any other:
    words are then read with the spaces between them.

    Raises:
        CharsetError: neither, not UTF-8, no characters, one of them twice, or white space that is no plain space.
    """
    if name in CHARSETS:
        return CHARSETS[name]
    path = Path(name)
    if not path.is_file():
        raise CharsetError(f"charset {name!r}: neither one of {', '.join(CHARSETS)} nor a text file")
    try:
        with open_lines(path) as lines:
            characters = b"".join(line.rstrip(b"\r\n") for line in lines).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CharsetError(f"charset {path}: not UTF-8 at byte {error.start}") from None
    except (ValueError, OSError) as error:
        raise CharsetError(f"charset {error}") from None
    return check_charset(characters, str(path))


def check_charset(characters: str, where: str) -> str:
    """The same characters. Raises `CharsetError` when there are none, one of them twice, or white space among them that
    is no plain space: labels hold no other (data_pipeline/words/labels.py)."""
    if not characters:
        raise CharsetError(f"charset {where}: holds no characters")
    seen: set[str] = set()
    for character in characters:
        white = character != " " and (character.isspace() or character == "\ufeff")
        if white or character in seen:
            kind = "white space, and of that only the plain space can be read" if white else "there twice"
            raise CharsetError(f"charset {where}: {character!r} (U+{ord(character):04X}) is {kind}; remove it")
        seen.add(character)
    return characters


def adapt_to_charset(text: str, charset: str) -> tuple[str, str]:
    """The text in the charset's case where it has only one, without characters outside of it; and those removed."""
    allowed, case = _of_charset(charset)
    text = case(text)
    return "".join(filter(allowed.__contains__, text)), "".join(c for c in text if c not in allowed)


@cache
def _of_charset(charset: str) -> tuple[frozenset[str], Callable[[str], str]]:
    """Its characters, and what brings a text to its case."""
    if charset == charset.lower() != charset.upper():
        return frozenset(charset), str.lower
    if charset == charset.upper() != charset.lower():
        return frozenset(charset), str.upper
    return frozenset(charset), str


class CharacterTokenizer:
    """Characters to ids and back. `characters`: see `read_charset`."""

    def __init__(self, characters: str) -> None:
        self.characters = check_charset(characters, "given")
        self.eos, self.bos, self.pad = 0, len(characters) + 1, len(characters) + 2
        self._ids = {character: number for number, character in enumerate(characters, start=1)}

    def __len__(self) -> int:
        """Ids, [E], [B] and [P] included."""
        return self.pad + 1

    def encode(self, text: str, length: int | None = None) -> np.ndarray:
        """[B], the characters, [E], then [P] up to `length` ids: int64 [length].

        Raises:
            CharsetError: a character outside the charset, or a text that does not fit.
        """
        unknown = [character for character in text if character not in self._ids]
        if unknown:
            raise CharsetError(f"{text!r}: {unknown[0]!r} (U+{ord(unknown[0]):04X}) is not in the charset")
        ids = [self.bos, *(self._ids[character] for character in text), self.eos]
        if length is not None and len(ids) > length:
            raise CharsetError(f"{text!r}: {len(text)} characters do not fit into {length - 2}")
        return np.array(ids + [self.pad] * ((length or len(ids)) - len(ids)), dtype=np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The characters before the first [E]; a leading [B] and padding are skipped."""
        text = []
        for number in map(int, ids):
            if number == self.eos:
                break
            if number < self.bos:
                text.append(self.characters[number - 1])
        return "".join(text)
