"""Label files beside word images: which file shows which word.

    labels.txt  gt.txt  labels.tsv     file<TAB>label, or as ICDAR writes it: file, "label"; or: file label
    labels.csv                         file,label (or ; or a tab between them), quoted or not

What separates is told by the first lines: the sign after the name of a file that is there. A first line that names no
image is a heading; it may then name the columns (`filename`, `label`, ...), in any order and among others. In quotes,
a quote is doubled (RFC 4180) or, where that does not fit the file, follows a backslash (ICDAR, MySQL); backslashes
elsewhere are part of a label, and in the name of a file they separate folders, as Windows writes them.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.folder_files import check_link, readable
from common.text_streams import open_lines
from data_pipeline.errors import SourceError
from tokenizer.inputs.broken_text import explain_broken
from tokenizer.inputs.image_stores import SUFFIXES

LABEL_FILES = ("labels.txt", "gt.txt", "labels.tsv", "labels.csv")
"""In any case; the first of these that is there."""
FILE_HEADINGS = frozenset({"file", "filename", "file_name", "image", "images", "image_path", "img", "name", "path"})
LABEL_HEADINGS = frozenset({"label", "labels", "text", "word", "words", "transcription", "ground_truth", "gt"})


@dataclass(frozen=True)
class LabelledFile:
    """One line."""

    file: Path
    """The image."""
    label: str
    """As it is written."""


def find_label_file(folder: Path) -> Path | None:
    """The label file of a folder, if it has one."""
    names = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_file()}
    return next((names[name] for name in LABEL_FILES if name in names), None)


def read_label_file(path: Path) -> list[LabelledFile]:
    """The lines of a label file, its heading left out. Names are relative to its folder; links there are followed.

    Raises:
        SourceError: a line cannot be read, or names a file that is not there or lies outside; names file and line.
    """
    folder, where = path.parent, readable(path)
    rows = _rows(path, folder, where)
    columns, width = (0, 1), 2
    found = []
    for place, (number, fields) in enumerate(rows):
        if place == 0 and (named := _heading(folder, fields)) is not None:
            columns, width = named, len(fields)
            continue
        if len(fields) != width:
            raise SourceError(f"{where}, line {number}: expected file and label, found {len(fields)} fields")
        name, label = (fields[column] for column in columns)
        file = _file_of(folder, name)
        if file is None:
            raise SourceError(f"{where}, line {number}: {readable(name)} lies outside of the folder")
        try:
            check_link(file)
        except FileNotFoundError as error:
            raise SourceError(f"{where}, line {number}: {error}") from None
        if not file.is_file():
            raise SourceError(f"{where}, line {number}: {readable(name)} is not there")
        if (problem := explain_broken(label)) is not None:
            raise SourceError(f"{where}, line {number}: {problem}")
        found.append(LabelledFile(file, label))
    return found


def _rows(path: Path, folder: Path, where: str) -> list[tuple[int, list[str]]]:
    """Number and fields of every line that is not blank."""
    try:
        with open_lines(path) as content:
            # Names may hold bytes that are not UTF-8; labels are checked below.
            lines = [line.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in content]
    except (ValueError, OSError) as error:
        raise SourceError(str(error)) from None
    separator = _separator(lines, folder, path.suffix.lower() == ".csv")
    if separator == "\t":
        rows: Iterator[tuple[int, list[str]]] = ((number, line.split("\t")) for number, line in enumerate(lines, 1))
    elif separator == " ":
        rows = ((number, line.split(maxsplit=1)) for number, line in enumerate(lines, 1))
    else:
        try:
            rows = iter(_quoted(lines, separator, doubled=True))
        except csv.Error:
            try:
                rows = iter(_quoted(lines, separator, doubled=False))
            except csv.Error as error:
                raise SourceError(f"{where}, {error}") from None
    return [(number, fields) for number, fields in rows if any(fields)]


def _quoted(lines: Sequence[str], separator: str, doubled: bool) -> list[tuple[int, list[str]]]:
    """Fields that may stand in quotes. Raises csv.Error, which names the line, where quotes do not fit."""
    escape = None if doubled else "\\"
    reader = csv.reader(
        (f"{line}\n" for line in lines), delimiter=separator, doublequote=doubled, escapechar=escape,
        skipinitialspace=True, strict=True,
    )  # fmt: skip
    rows, number = [], 0
    try:
        for fields in reader:
            if reader.line_num != number + 1:
                raise csv.Error("a label that ends on another line")
            number = reader.line_num
            rows.append((number, fields))
    except csv.Error as error:
        raise csv.Error(f"line {number + 1}: quotes that do not fit ({error})") from None
    return rows


def _separator(lines: Sequence[str], folder: Path, table: bool) -> str:
    """What stands between file and label: behind the name of a file in one of the first two lines, if there is one."""
    order = ",;\t" if table else "\t,; "
    first = [line for line in lines if line.strip()][:2]
    for line in first:
        for separator in order:
            name, found, _ = line.partition(separator)
            file = _file_of(folder, name.strip().strip('"')) if found else None
            if file is not None and file.is_file():
                return separator
    return next((separator for separator in order.rstrip() if any(separator in line for line in first)), order[0])


def _heading(folder: Path, fields: Sequence[str]) -> tuple[int, int] | None:
    """The columns of file and label if these fields are a heading, else None."""
    names = [field.strip().lower() for field in fields]
    files = [number for number, name in enumerate(names) if name in FILE_HEADINGS]
    labels = [number for number, name in enumerate(names) if name in LABEL_HEADINGS]
    there = [file for file in (_file_of(folder, field) for field in fields) if file is not None and file.is_file()]
    if there:
        return None
    if files and labels:
        return files[0], labels[0]
    plain = len(fields) == 2 and not any(mark in names[0] for mark in "/\\") and not names[0].endswith(SUFFIXES)
    return (0, 1) if plain else None


def _file_of(folder: Path, name: str) -> Path | None:
    """The file of a name as another system may have written it; None if it would lead out of the folder."""
    spellings = [name, name.replace("\\", "/")]
    spellings += [unicodedata.normalize(form, spellings[1]) for form in ("NFC", "NFD")]
    inside = [folder / spelling for spelling in spellings if _stays_inside(spelling)]
    if len(inside) < len(spellings):
        return None
    return next((path for path in inside if os.path.lexists(path)), inside[0])


def _stays_inside(name: str) -> bool:
    plain = Path(os.path.normpath(name))
    return not plain.is_absolute() and plain.parts[:1] != (os.pardir,) and "\0" not in name
