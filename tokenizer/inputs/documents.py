"""Streams documents out of local files, one at a time, and names the place of everything that is wrong with them.

    .jsonl  .ndjson     one object a line; the text in `text_field`, optional `id`, `lang`, `source`
    .json               an array of such objects, or objects one after the other
    .txt  .text         cut into documents at blank lines, see `TXT_DOCUMENT_BYTES`
    .parquet            the same columns as the fields above

Suffixes count in any case, and all but .parquet may be packed (.gz, .bz2, .xz, .zst). `text_field` may lead into nested
fields (`meta.text`); several texts in a list (`paragraphs`, `messages.content`) become one, a line break between them.

Memory is bounded by the longest line (or one Parquet batch), whatever the size of the files. Truncated archives are
errors, not short files.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import DataError
from common.folder_files import check_link, find_files, readable
from common.json_text import JsonError, parse_json, parse_json_values
from common.text_streams import COMPRESSIONS, damage_named, kind_of, text_lines, text_stream, unmarked
from tokenizer.inputs.broken_text import InvalidDocumentError, explain_broken, mend

LINES, TEXTS = (".jsonl", ".ndjson"), (".txt", ".text")
SUFFIXES = (*(kind + packed for kind in (*LINES, ".json", *TEXTS) for packed in ("", *COMPRESSIONS)), ".parquet")
KINDS = f"{', '.join((*LINES, '.json', *TEXTS))} (each also {', '.join(COMPRESSIONS)}), .parquet"
"""`SUFFIXES`, for people."""
TXT_DOCUMENT_BYTES = 16_384
"""A .txt document ends at the first blank line after this many bytes, and at a line end after four times as many."""
PARQUET_BATCH_ROWS = 256
JSON_BLOCK = 2**18
"""Bytes of a .json file that are read at a time; in the first of them its first line is looked for."""


@dataclass(frozen=True)
class Document:
    """One text with what is known about it."""

    text: str
    id: str
    """The object's own id, or `file:line`."""
    source: str
    """The object's own `source`, or the file's name."""
    lang: str | None
    """The object's own `lang`, if it has one."""
    consumed: int
    """Bytes of the stored (compressed) file read so far, for progress bars."""


OnInvalid = Callable[[InvalidDocumentError], bool | None]
"""Called with each document that cannot be used; True: use it all the same, mended. Asked for of kind `utf8` only."""


def refuse(problem: InvalidDocumentError) -> None:
    """The default `on_invalid`: stop at the first document that cannot be used."""
    raise problem


def looks_local(entry: str) -> bool:
    """Whether an entry names a file or folder, there or not, and no data set on the hub."""
    return os.path.lexists(entry) or entry.lower().endswith(SUFFIXES) or entry.startswith(("/", ".", "~"))


def list_files(paths: Iterable[str | Path]) -> list[Path]:
    """Expands directories into the files below them that can be read, in sorted order: see folder_files.py.

    Raises:
        FileNotFoundError: a path does not exist, a link leads nowhere, or a directory holds nothing readable.
        UnusedFilesError: much of a directory would be left out.
        ValueError: a file has a suffix that no reader knows.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        check_link(path)
        if path.is_dir():
            found = find_files(path, SUFFIXES)
            if not found.files:
                others = (
                    f"; it holds {len(found.unused):,} others ({found.unused[0].name}, ...)" if found.unused else ""
                )
                raise FileNotFoundError(f"{readable(path)}: no file below it ends in {KINDS}{others}")
            files += found.use(SUFFIXES)
        elif not path.exists():
            raise FileNotFoundError(f"{readable(path)}: no such file or directory")
        elif not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{readable(path)}: cannot read this kind of file; known are {KINDS}")
        elif not path.is_file():
            raise DataError(f"{readable(path)}: a pipe or device; write what it gives into a file first")
        else:
            files.append(path)
    return files


def read_documents(path: str | Path, text_field: str = "text", on_invalid: OnInvalid = refuse) -> Iterator[Document]:
    """Yields the documents of one file in file order.

    Args:
        path: a file with one of `SUFFIXES`.
        text_field: the JSON field or Parquet column that holds the text.
        on_invalid: called with each unusable document (kinds `utf8`, `json`, `field`, `empty`); raise to stop.

    Raises:
        InvalidDocumentError: from the default `on_invalid`.
        ValueError: the file itself is damaged (truncated archive, not Parquet) or has no such column.
    """
    path = Path(path)
    check_link(path)
    with damage_named(path):
        if kind_of(path.name) == ".parquet":
            yield from read_parquet(path, text_field, on_invalid)
            return
        with path.open("rb") as raw:
            if kind_of(path.name) == ".json":
                yield from read_json(raw, path, text_field, on_invalid)
                return
            lines = enumerate(text_lines(raw, path), start=1)
            if kind_of(path.name) in LINES:
                yield from read_jsonl(lines, raw, path, text_field, on_invalid)
            else:
                yield from _read_txt(lines, raw, path, on_invalid)


def document_from_fields(
    fields: Any, text_field: str, where: str, source: str, consumed: int, on_invalid: OnInvalid
) -> Document | None:
    """Checks one decoded object (from JSON, Parquet or a hub data set); None after `on_invalid` accepted a problem."""
    if not isinstance(fields, dict):
        on_invalid(InvalidDocumentError(where, "json", f"expected an object, got {type(fields).__name__}"))
        return None
    text, problem = _text_of(fields, text_field)
    if problem is not None:
        on_invalid(InvalidDocumentError(where, *problem))
        return None
    if (broken := explain_broken(text)) is not None:
        if not on_invalid(InvalidDocumentError(where, "utf8", broken)):
            return None
        text = mend(text)
    lang = _named(fields, "lang")
    return Document(
        text=text,
        id=_named(fields, "id") or where,
        source=_named(fields, "source") or source,
        lang=lang or None,
        consumed=consumed,
    )


def _named(fields: dict[str, Any], name: str) -> str:
    """A field as text that can be written anywhere; empty where it is missing. 0 is a value."""
    value = fields.get(name)
    return "" if value is None else mend(str(value))


def _text_of(fields: dict[str, Any], text_field: str) -> tuple[str, tuple[str, str] | None]:
    """The text of an object, and the kind and detail of what keeps it from being used."""
    found = value_at(fields, text_field)
    if found is MISSING:
        return "", ("field", f"no field '{text_field}'; there are {', '.join(map(str, fields))}{_wrapped(fields)}")
    parts = found if isinstance(found, list) and found else [found]
    parts = [part.decode("utf-8", "surrogateescape") if isinstance(part, bytes) else part for part in parts]
    if not all(isinstance(part, str) for part in parts):
        kinds = {type(part).__name__ for part in parts}
        what = f"a list of {' and '.join(sorted(kinds))}" if isinstance(found, list) and found else type(found).__name__
        return "", ("field", f"field '{text_field}' must be a string, but is {what}")
    text = "\n".join(parts)
    return text, None if text.strip() else ("empty", f"field '{text_field}' is empty")


def _wrapped(fields: dict[str, Any]) -> str:
    """What to do about an object that only wraps the list of the documents; empty for any other."""
    lists = (name for name, value in fields.items() if isinstance(value, list) and value and isinstance(value[0], dict))
    name = next(lists, None)
    return "" if name is None else f"; '{name}' is a list of objects: if they are the documents, write that list alone"


MISSING = object()
"""What `value_at` gives for a path that leads nowhere: None is a value."""


def value_at(value: Any, path: str) -> Any:
    """What a path like `meta.text` leads to: a name with dots is tried whole first; lists are looked through."""
    if isinstance(value, list):
        found = [value_at(entry, path) for entry in value]
        return MISSING if not found or MISSING in found else found
    if not isinstance(value, dict):
        return MISSING
    if path in value:
        return value[path]
    name, dot, rest = path.partition(".")
    return value_at(value[name], rest) if dot and name in value else MISSING


def read_jsonl(
    lines: Iterable[tuple[int, bytes]], raw: BinaryIO, path: Path, text_field: str, on_invalid: OnInvalid
) -> Iterator[Document]:
    """Documents of numbered JSON lines of the open file `raw`: all of them, or those of one part of the file."""
    name, source = readable(path), readable(path.name)
    for number, line in lines:
        where = f"{name}:{number}"
        if not line.strip():
            continue  # a blank line separates, it is no document
        try:
            fields = parse_json(line)
        except JsonError as error:
            on_invalid(InvalidDocumentError(where, "json", f"not a JSON object ({error})"))
            continue
        document = document_from_fields(fields, text_field, where, source, raw.tell(), on_invalid)
        if document is not None:
            yield document


def read_json(raw: BinaryIO, path: Path, text_field: str, on_invalid: OnInvalid) -> Iterator[Document]:
    """Documents of a .json file: of the array in it, of its lines, or of objects printed over several lines.

    Raises:
        ValueError: it is damaged, and where; what follows the damage in anything but lines cannot be found again.
    """
    stream = text_stream(raw, path)
    head = stream.read(JSON_BLOCK)
    if _begins_with_a_line(head):
        lines = enumerate(unmarked(_lines_from(head, stream)), start=1)
        yield from read_jsonl(lines, raw, path, text_field, on_invalid)
        return
    name, number = readable(path), 0
    try:
        blocks = chain([head], iter(partial(stream.read, JSON_BLOCK), b""))
        for number, fields in enumerate(parse_json_values(blocks), start=1):
            where = f"{name}:item {number}"
            document = document_from_fields(fields, text_field, where, readable(path.name), raw.tell(), on_invalid)
            if document is not None:
                yield document
    except JsonError as error:
        raise DataError(
            f"{name}: damaged or truncated after item {number} ({error}); fetch or write it again"
        ) from error


def _begins_with_a_line(head: bytes) -> bool:
    """Whether the first line is an object of its own."""
    line, end, _ = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    try:
        return bool(end) and isinstance(parse_json(line), dict)
    except JsonError:
        return False


def _lines_from(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream of which `head` was read already."""
    begun = io.BytesIO(head).readlines()
    yield from begun[:-1]
    if begun:
        yield begun[-1] if begun[-1].endswith(b"\n") else begun[-1] + stream.readline()
    yield from stream


def _read_txt(
    lines: Iterable[tuple[int, bytes]], raw: BinaryIO, path: Path, on_invalid: OnInvalid
) -> Iterator[Document]:
    name, source = readable(path), readable(path.name)

    def finish() -> Document | None:
        # A place that is named for what is wrong there is the line at fault, not the document's first.
        broken = next((line for line, part in enumerate(parts, first_line) if explain_broken(part)), None)
        fields, consumed = {"text": "".join(parts)}, raw.tell()
        where = f"{name}:{broken or first_line}"
        document = document_from_fields(fields, "text", where, source, consumed, on_invalid)
        return document and replace(document, id=f"{name}:{first_line}")

    parts: list[str] = []
    size, first_line = 0, 1
    for number, line in lines:
        parts.append(line.decode("utf-8", "surrogateescape"))
        size += len(line)
        at_break = not line.strip() and size >= TXT_DOCUMENT_BYTES
        if at_break or size >= 4 * TXT_DOCUMENT_BYTES:
            document = finish()
            if document is not None:
                yield document
            parts, size, first_line = [], 0, number + 1
    if any(part.strip() for part in parts) or first_line == 1:  # blank lines at the end of a file are no document
        document = finish()
        if document is not None:
            yield document


def read_parquet(
    path: Path, text_field: str, on_invalid: OnInvalid, row_groups: Sequence[int] | None = None
) -> Iterator[Document]:
    """Documents of a Parquet file, or of some consecutive row groups; rows are numbered through the file."""
    name, source = readable(path), readable(path.name)
    with pq.ParquetFile(path) as table:
        wanted = columns_for(text_field, table.schema_arrow, name)
        size, rows = path.stat().st_size, max(1, table.metadata.num_rows)
        groups = range(table.num_row_groups) if row_groups is None else row_groups
        row = sum(table.metadata.row_group(group).num_rows for group in range(groups[0])) if groups else 0
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, row_groups=list(groups), columns=wanted):
            for index in range(batch.num_rows):
                row += 1
                fields = {column: plain_value(batch.column(column)[index]) for column in wanted}
                consumed = size * row // rows
                where = f"{name}:row {row}"
                document = document_from_fields(fields, text_field, where, source, consumed, on_invalid)
                if document is not None:
                    yield document


def columns_for(text_field: str, schema: pa.Schema, where: str) -> list[str]:
    """The columns of a table that hold the text and what is known about it. Raises ValueError if the text has none."""
    root = text_field if text_field in schema.names else text_field.partition(".")[0]
    leaves = [leaf for field in schema for leaf in _leaves(field.name, field.type)]
    if root not in schema.names or (root != text_field and text_field not in leaves):
        raise DataError(f"{where}: no column '{text_field}'; it has {', '.join(leaves)}")
    return [root, *(name for name in ("id", "source", "lang") if name in schema.names and name != root)]


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """What `text_field` may be called to reach the values of a column."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind):
        return [path]
    return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]


def plain_value(scalar: pa.Scalar) -> Any:
    """`as_py`, with bytes that are not UTF-8 as lone surrogates, where that raises UnicodeDecodeError."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if isinstance(scalar, pa.StructScalar):
            return {name: plain_value(value) for name, value in scalar.items()}
        if isinstance(scalar, pa.ListScalar):
            return [plain_value(value) for value in scalar]
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
