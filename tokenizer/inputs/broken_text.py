"""One policy for text that is broken: bytes that are not UTF-8, and halves of surrogate pairs.

    skip      the document is left out; counted, shown, and refused above `MAX_BROKEN` of the documents
    replace   U+FFFD takes the place of each such byte and half; counted and shown
    refuse    an error at the first one

The same switch, `broken_text`, with the same default in every command that reads text. What is broken *beside* the
text, in another field, is no damage to the text.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Literal

from common.errors import InputError

BrokenText = Literal["skip", "replace", "refuse"]
MAX_BROKEN = 0.01
EXAMPLES = 3
_BROKEN = re.compile("[\ud800-\udfff]")


class InvalidDocumentError(InputError, ValueError):
    """A document that cannot be used: `where` is file and line (or row), `kind` a short key to count by."""

    def __init__(self, where: str, kind: str, detail: str) -> None:
        self.where, self.kind, self.detail = mend(where), kind, mend(detail)
        super().__init__(f"{self.where}: {self.detail}")


def explain_broken(text: str) -> str | None:
    """What is broken in a text, and where; None for one that is whole."""
    if text.isascii() or not (found := _BROKEN.search(text)):
        return None
    code = ord(found[0])
    what = f"the byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"half a surrogate pair, \\u{code:04x},"
    return f"not UTF-8 ({what} at character {found.start()} of the text)"


def mend(text: str) -> str:
    """The text with U+FFFD in place of each byte that is not UTF-8 and each half of a surrogate pair."""
    return text if text.isascii() else _BROKEN.sub("\ufffd", text)


@dataclass
class TextCheck:
    """What reading some documents ran into: an `on_invalid` that follows the policy, for one call of a command."""

    policy: BrokenText
    """What becomes of broken text."""
    empty: int = 0
    """Documents without text, which are passed over."""
    broken: int = 0
    """Documents of broken text, left out or mended."""
    examples: list[InvalidDocumentError] = field(default_factory=list)
    """The first of them."""

    def __call__(self, problem: InvalidDocumentError) -> bool:
        """Takes a problem; True: use the document, mended. Raises it if nothing allows to go on."""
        if problem.kind == "empty":
            self.empty += 1
            return False
        if problem.kind != "utf8" or self.policy == "refuse":
            raise problem
        self.broken += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(problem)
        return self.policy == "replace"

    def finish(self, documents: int) -> None:
        """Says on stderr what was broken, after `documents` were read that could be used.

        Raises:
            InvalidDocumentError: more than `MAX_BROKEN` of all were left out; names the first.
        """
        if not self.broken:
            return
        total = documents + (self.broken if self.policy == "skip" else 0)
        if self.policy == "skip" and self.broken > MAX_BROKEN * total:
            first = self.examples[0]
            raise InvalidDocumentError(
                first.where,
                first.kind,
                f"{first.detail}; {self.broken:,} of {total:,} documents are like that, more than {MAX_BROKEN:.0%}:"
                " convert the file to UTF-8 (iconv), or give --broken_text replace",
            )
        what = "mended with U+FFFD" if self.policy == "replace" else "left out"
        shown = "; ".join(map(str, self.examples))
        print(f"{self.broken:,} of {total:,} documents hold broken text and were {what}: {shown}", file=sys.stderr)
