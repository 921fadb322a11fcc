"""Words to be drawn, from word lists or from running text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.folder_files import check_link, readable
from common.text_streams import kind_of, open_lines
from data_pipeline.errors import SourceError
from data_pipeline.words.labels import LabelReport, LabelRules
from tokenizer.inputs.broken_text import BrokenText, InvalidDocumentError, TextCheck, explain_broken, mend
from tokenizer.inputs.documents import list_files, read_documents

LISTS = (".txt", ".text", ".tsv")
MAX_LIST_BYTES = 2**30
"""Of a .txt or .tsv, unpacked: a .gz of one megabyte can hold a thousand."""


def read_words(
    files: Sequence[str], rules: LabelRules, text_field: str = "text", broken_text: BrokenText = "skip"
) -> tuple[list[str], LabelReport]:
    """Distinct words, sorted, after the label rules, and what the rules did.

    Args:
        files: .txt and .tsv (also packed): the words of each line, of a .tsv those of its first column; .jsonl,
            .parquet and so on: the words of their texts.
        rules: charset and length.
        text_field: of the texts.
        broken_text: what becomes of lines and documents that are not UTF-8.

    Raises:
        SourceError: a file is missing, damaged or not UTF-8, or no word is left.
    """
    report = LabelReport()
    found: set[str] = set()
    words: set[str] = set()
    for name in files:
        try:
            for place, word in _words_of(name, text_field, broken_text):
                if word in found:
                    continue
                found.add(word)
                clean = rules.clean(word)
                report.add(place, word, clean)
                if clean.text:
                    words.add(clean.text)
        except (OSError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(str(error)) from None
    if not words:
        raise SourceError(f"{', '.join(files)}: no words that the charset can hold ({report.to_text()})")
    return sorted(words), report


def _words_of(name: str, text_field: str, broken_text: BrokenText) -> Iterator[tuple[str, str]]:
    """Words and where they stand."""
    path = Path(name)
    check_link(path)
    if not path.exists():
        raise SourceError(f"{name}: no such word list")
    if not path.is_dir() and kind_of(path.name) in LISTS:
        yield from _words_of_list(path, broken_text)
        return
    check, documents = TextCheck(broken_text), 0
    for file in list_files([path]):
        for document in read_documents(file, text_field, check):
            documents += 1
            yield from ((document.id, word) for word in document.text.split())
    check.finish(documents)


def _words_of_list(path: Path, broken_text: BrokenText) -> Iterator[tuple[str, str]]:
    """The words of each line, of a .tsv of its first column; a line is a document where text is broken."""
    check, lines, size = TextCheck(broken_text), 0, 0
    name = readable(path)
    with open_lines(path) as content:
        for number, line in enumerate(content, start=1):
            size += len(line)
            if size > MAX_LIST_BYTES:
                raise SourceError(f"{name}: more than {MAX_LIST_BYTES:,} bytes of words")
            place = f"{name}, line {number}"
            text = line.decode("utf-8", "surrogateescape")
            if (problem := explain_broken(text)) and not check(InvalidDocumentError(place, "utf8", problem)):
                continue
            lines += 1
            words = mend(text).split("\t")[0] if kind_of(path.name) == ".tsv" else mend(text)
            yield from ((place, word) for word in words.split())
    check.finish(lines)
