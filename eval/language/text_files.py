"""Records of JSON Lines files and documents of text files, opened and judged as the tokenizer room does it.

Errors name file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.json_text import JsonError, parse_json
from common.text_streams import kind_of, open_lines
from tokenizer.inputs.broken_text import BrokenText, TextCheck, explain_broken
from tokenizer.inputs.documents import KINDS, SUFFIXES, TEXTS, read_documents


class TextFileError(InputError, ValueError):
    """A file is missing, of an unknown kind, damaged, or has a record without text."""


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file; blank lines are passed over.

    Benchmarks are read whole or not at all, so a record that holds broken text is an error.
    """
    if not path.is_file():
        raise TextFileError(f"{path}: there is no such file")
    number = 0
    try:
        with open_lines(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = parse_json(line)
                except JsonError as error:
                    raise TextFileError(f"{path}:{number}: not JSON ({error})") from None
                if not isinstance(record, dict):
                    raise TextFileError(f"{path}:{number}: not a JSON object")
                # Half a pair is written as an escape; what JSON holds of it shows when it is written plainly.
                plain = (
                    line.decode("utf-8", "surrogateescape")
                    if b"\\" not in line
                    else json.dumps(record, ensure_ascii=False)
                )
                if problem := explain_broken(plain):
                    raise TextFileError(f"{path}:{number}: {problem}")
                yield record
    except ValueError as error:
        if isinstance(error, TextFileError):
            raise
        raise TextFileError(f"{path}: damaged after line {number} ({error})") from None


def read_texts(path: Path, broken_text: BrokenText = "skip") -> Iterator[str]:
    """Non-empty documents in order: the field ``text`` of records, stripped, or a whole .txt file."""
    if not path.is_file():
        raise TextFileError(f"{path}: there is no such file")
    if not path.name.lower().endswith(SUFFIXES):
        raise TextFileError(f"{path}: cannot read this kind of file; known are {KINDS}")
    check, parts, found = TextCheck(broken_text), [], 0
    try:
        for document in read_documents(path, on_invalid=check):
            found += 1
            if kind_of(path.name) in TEXTS:
                parts.append(document.text)
            else:
                yield document.text.strip()
        check.finish(found)
    except ValueError as error:
        raise TextFileError(str(error)) from None
    if parts:
        yield "".join(parts)
