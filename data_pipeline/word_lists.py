"""Words to be drawn, from word lists or from running text."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import SourceError
from data_pipeline.labels import LabelReport, LabelRules
from tokenizer.documents import list_files, read_documents, refuse_unless_empty

MAX_LIST_BYTES = 2**30
"""Of a .txt or .tsv, unpacked: a .gz of one megabyte can hold a thousand."""


def read_words(files: Sequence[str], rules: LabelRules, text_field: str = "text") -> tuple[list[str], LabelReport]:
    """Distinct words, sorted, after the label rules, and what the rules did.

    Args:
        files: .txt and .tsv (also .gz): the words of each line, of a .tsv those of its first column; .jsonl, .parquet
            and so on: the words of their texts.
        rules: charset and length.
        text_field: of the texts.

    Raises:
        SourceError: a file is missing or not UTF-8, or no word is left.
    """
    report = LabelReport()
    found: set[str] = set()
    words: set[str] = set()
    for name in files:
        for place, word in _words_of(name, text_field):
            if word in found:
                continue
            found.add(word)
            clean = rules.clean(word)
            report.add(place, word, clean)
            if clean.text:
                words.add(clean.text)
    if not words:
        raise SourceError(f"{', '.join(files)}: no words that the charset can hold ({report.to_text()})")
    return sorted(words), report


def _words_of(name: str, text_field: str) -> list[tuple[str, str]]:
    path = Path(name)
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix != ".gz"]
    if path.is_file() and suffixes[-1:] in (["." + kind] for kind in ("txt", "tsv")):
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                content = file.read(MAX_LIST_BYTES + 1)
            if len(content) > MAX_LIST_BYTES:
                raise SourceError(f"{path}: more than {MAX_LIST_BYTES:,} bytes of words")
            lines = content.decode("utf-8-sig").splitlines()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise SourceError(f"{path}: cannot be read ({error})") from None
        words = [(f"{path}, line {number}", line.split("\t")[0].strip()) for number, line in enumerate(lines, start=1)]
        return [(place, word) for place, text in words for word in text.split()]
    if not path.exists():
        raise SourceError(f"{path}: no such word list")
    return [
        (document.id, word)
        for file in list_files([name])
        for document in read_documents(file, text_field, refuse_unless_empty)
        for word in document.text.split()
    ]
