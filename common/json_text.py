"""One way to read JSON of data: what Python's own `json` reads, at the speed of orjson where it can.

    NaN, Infinity, numbers of any length, half a surrogate pair, bytes that are not UTF-8      read, here as there
    .json    an array of objects, or objects one after the other (a line each, or printed over many lines)

Bytes that are not UTF-8 become lone surrogates (U+DC80 to U+DCFF, Python's `surrogateescape`), as half a pair stays
one: broken_text.py says what becomes of a text that holds such characters.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from common.errors import InputError

LONGEST_MARK = 12
"""Characters of what has no inside: two escapes of a surrogate pair, `-Infinity`."""
SPACE = " \t\r\n\ufeff"


class JsonError(InputError, ValueError):
    """Not JSON."""


def parse_json(line: bytes) -> Any:
    """The value of one JSON text.

    Raises:
        JsonError: it is none; says why.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:  # a number of more digits than Python turns into one is a ValueError
        raise JsonError(str(error)) from None


def parse_json_values(blocks: Iterable[bytes]) -> Iterator[Any]:
    """The values of a .json file, which comes in blocks: the elements of its array, or values one after the other.

    Memory: three times the largest element, and a block.

    Raises:
        JsonError: at the first place that is not JSON, for what follows a broken value cannot be told apart.
    """
    reader = _Values(blocks)
    if reader.skip(SPACE) != "[":
        while reader.skip(SPACE):
            yield reader.value()
        return
    reader.position += 1
    if reader.skip(SPACE) == "]":
        reader.position += 1
    else:
        while True:
            yield reader.value()
            if (mark := reader.skip(SPACE)) not in (",", "]"):
                raise JsonError(f"expected ',' or ']' after an element of the array, found {mark or 'the end'!r}")
            reader.position += 1
            if mark == "]":
                break
    if reader.skip(SPACE):
        raise JsonError("something follows the array")


class _Values:
    """JSON values read one by one out of blocks of bytes."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self._text, self._ended = iter(blocks), "", False
        self._bytes = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder()
        self.position = 0

    def skip(self, characters: str) -> str:
        """The next character that is none of these; empty at the end."""
        while True:
            while self.position < len(self._text):
                if self._text[self.position] not in characters:
                    return self._text[self.position]
                self.position += 1
            if not self._more(1):
                return ""

    def value(self) -> Any:
        """The value that begins here, white space before it passed over."""
        self.skip(SPACE)
        size = 1
        while True:
            try:
                value, stop = self._json.raw_decode(self._text, self.position)
            except (ValueError, RecursionError) as error:
                # Perhaps it was cut off here: twice as much each time, so that a long one is not read again and again.
                if isinstance(error, json.JSONDecodeError) and self._may_go_on(error) and self._more(size):
                    size = 2 * len(self._text)
                    continue
                raise JsonError(str(error)) from None
            # A number may go on behind the end of what was read, up to which there may be `e+`; nothing else can.
            if stop + 2 >= len(self._text) and isinstance(value, (int, float)) and not self._ended:
                self._more(size)
                continue
            self.position = stop
            return value

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend it: a file that is broken early is not read to its end to be refused."""
        return error.pos >= len(self._text) - LONGEST_MARK or error.msg.startswith("Unterminated string")

    def _more(self, size: int) -> bool:
        """Reads on, and forgets what was passed over; False at the end."""
        if self._ended:
            return False
        pieces, read = [self._text[self.position :]], 0
        for block in self._blocks:
            pieces.append(self._bytes.decode(block))
            read += len(block)
            if read >= size:
                break
        else:
            self._ended = True
            pieces.append(self._bytes.decode(b"", final=True))
        self._text, self.position = "".join(pieces), 0
        return read > 0 or not self._ended
