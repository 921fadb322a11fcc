"""`ReadPart`: the datatrove step that reads one part of the input.

datatrove's own readers log a broken line and go on, so nobody knows what a corpus lost. This one hands every document
that cannot be used to a `RejectLog`, which counts it by reason and keeps where the first ones are.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from datatrove.data import Document as PipelineDocument
from datatrove.pipeline.base import PipelineStep

from common.folder_files import readable
from common.text_streams import check_plain, damage_named, text_lines, unmarked
from common.token_shards import Rejected, RejectExample
from data_pipeline.shards.parts import Plan, Unit, is_compressed, open_dataset
from data_pipeline.shards.workspace import Workspace
from tokenizer.inputs.broken_text import BrokenText, InvalidDocumentError, mend
from tokenizer.inputs.documents import (
    Document,
    OnInvalid,
    columns_for,
    document_from_fields,
    plain_value,
    read_json,
    read_jsonl,
    read_parquet,
)

EXAMPLES_PER_REASON = 3
EXCERPT_CHARACTERS = 80
MENDED = "invalid UTF-8, mended with U+FFFD"
"""The one reason for which a document is logged although it is used."""
REASONS = {
    "json": "broken JSON",
    "utf8": "invalid UTF-8",
    "mended": MENDED,
    "field": "missing or mistyped text field",
    "empty": "empty document",
    "image": "unreadable image",
    "pair": "image and target that do not fit",
    "masks": "image without masks",
}


class ReadPart(PipelineStep):
    """Yields the documents of part `rank` of the plan, in input order.

    Each carries `consumed` in its metadata: stored bytes of the part read so far. When the part is exhausted, its
    rejects and line counts are written to the workspace.

    Args:
        workspace: where the plan is and the log goes.
        text_field: field or column that holds the text.
        split: split of data sets.
        broken_text: what becomes of a document whose text is broken.
    """

    name = "Read part"
    type = "📖 - READER"

    def __init__(self, workspace: str, text_field: str, split: str, broken_text: BrokenText = "skip"):
        super().__init__()
        self.workspace = workspace
        self.text_field = text_field
        self.split = split
        self.broken_text: BrokenText = broken_text

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[PipelineDocument]:
        """Read part `rank`; `data` must be empty, because the step begins a pipeline."""
        workspace = Workspace(Path(self.workspace))
        log = RejectLog(self.broken_text)
        done = 0
        for unit in Plan.load(workspace.plan).parts[rank]:
            log.begin(unit)
            for document in read_unit(unit, self.text_field, self.split, log):
                self.stat_update("documents")
                consumed = done + min(max(0, document.consumed - log.offset), unit.size)
                yield PipelineDocument(text=document.text, id=document.id, metadata={"consumed": consumed})
            done += unit.size
        log.save(workspace.reject_log(rank))


@dataclass(frozen=True)
class Found:
    """A rejected document where it was found."""

    reason: str
    """One of `REASONS`."""
    unit: int
    """Number of the unit within the part."""
    number: int
    """Line of the unit, or row of the table, from 1."""
    excerpt: str
    """The beginning of the line, or what is wrong with the row."""


class RejectLog:
    """Counts rejected documents of one part by reason, and remembers the first of each.

    Args:
        broken_text: with replace, a document of broken text is logged and used, with refuse an error.
    """

    def __init__(self, broken_text: BrokenText = "skip") -> None:
        self.broken_text = broken_text
        self.units: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.found: list[Found] = []
        self.unit: Unit | None = None
        self.line = b""
        self.offset = 0

    def begin(self, unit: Unit) -> None:
        """The documents that follow are this unit's."""
        self.unit = unit
        counted = unit.kind in ("jsonl", "lines")
        self.units.append({"name": unit.name, "path": unit.path, "counted": counted, "lines": 0})
        self.line = b""
        self.offset = unit.start if counted and not is_compressed(unit.path) else 0

    def numbered(self, lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
        """The lines with their numbers from 1; the current one is kept, to quote it if it is rejected."""
        for number, self.line in enumerate(lines, start=1):
            self.units[-1]["lines"] = number
            yield number, self.line

    def __call__(self, problem: InvalidDocumentError) -> bool:
        """Take a document that a reader could not use; True: it is to be used, mended.

        Raises InvalidDocumentError for one of broken text that is to be refused.
        """
        mended = problem.kind == "utf8" and self.broken_text == "replace"
        place = re.search(r"\d+$", problem.where)
        if problem.kind == "utf8" and self.broken_text == "refuse":
            if place is None or self.unit is None or not self.units[-1]["counted"] or not self.unit.start:
                raise problem
            number = int(place.group()) + lines_before(self.unit)  # the reader counts from the part's beginning
            raise InvalidDocumentError(f"{problem.where[: place.start()]}{number}", problem.kind, problem.detail)
        quoted = self.line.decode("utf-8", "backslashreplace").strip() or problem.detail
        self.reject("mended" if mended else problem.kind, int(place.group()) if place else 1, quoted)
        return mended

    def reject(self, kind: str, number: int, quoted: str, count: int = 1) -> None:
        """Count documents that all come from line or row `number` of the unit, and keep the first few places."""
        reason, quoted = REASONS[kind], mend(quoted)
        self.counts[reason] += count
        if sum(found.reason == reason for found in self.found) < EXAMPLES_PER_REASON:
            excerpt = quoted if len(quoted) <= EXCERPT_CHARACTERS else f"{quoted[:EXCERPT_CHARACTERS]}..."
            self.found.append(Found(reason, len(self.units) - 1, number, excerpt))

    def save(self, path: Path) -> None:
        """Write the log of a part that was read to its end."""
        content = {"units": self.units, "counts": self.counts, "found": [asdict(found) for found in self.found]}
        path.write_text(json.dumps(content), encoding="utf-8")


def lines_before(unit: Unit) -> int:
    """Lines of a plain file that begin before the unit does."""
    with Path(unit.path).open("rb") as file:
        ends, left = 0, unit.start - 1
        while block := file.read(min(left, 2**20)):
            ends, left = ends + block.count(b"\n"), left - len(block)
    return ends + 1


def merge_reject_logs(paths: list[Path]) -> dict[str, Rejected]:
    """The rejects of all parts, in part order, with line numbers counted from the beginning of each file."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[RejectExample]] = {reason: [] for reason in REASONS.values()}
    lines_before: Counter[str] = Counter()
    for path in paths:
        log = json.loads(path.read_text(encoding="utf-8"))
        counts.update(log["counts"])
        first_lines = []
        for unit in log["units"]:
            first_lines.append(lines_before[unit["path"]])
            lines_before[unit["path"]] += unit["lines"] if unit["counted"] else 0
        for found in (Found(**found) for found in log["found"]):
            if len(examples[found.reason]) < EXAMPLES_PER_REASON:
                place = first_lines[found.unit] + found.number
                examples[found.reason].append(RejectExample(log["units"][found.unit]["name"], place, found.excerpt))
    return {reason: Rejected(counts[reason], examples[reason]) for reason in REASONS.values() if counts[reason]}


def read_unit(unit: Unit, text_field: str, split: str, log: RejectLog) -> Iterator[Document]:
    """The documents of one unit; those that cannot be used go to `log`.

    Raises ValueError when the file itself is damaged, or has no column `text_field`.
    """
    path = Path(unit.path)
    if unit.kind == "dataset":
        yield from _read_dataset(unit, text_field, split, log)
        return
    with damage_named(path):
        if unit.kind == "parquet":
            yield from read_parquet(path, text_field, log, range(unit.start, unit.stop))
            return
        with path.open("rb") as raw:
            if unit.kind == "document":
                yield from _read_document(raw, path, log)
                return
            if unit.kind == "json":
                yield from read_json(raw, path, text_field, log)
                return
            lines = log.numbered(_lines(raw, path, unit))
            if unit.kind == "jsonl":
                yield from read_jsonl(lines, raw, path, text_field, log)
            else:
                yield from _read_lines(lines, raw, path, log)


def _lines(raw: BinaryIO, path: Path, unit: Unit) -> Iterator[bytes]:
    """The lines that *begin* within the unit's bytes; a compressed file is always read whole."""
    if is_compressed(unit.path):
        yield from text_lines(raw, path)
        return
    check_plain(raw, path)
    if unit.start:
        raw.seek(unit.start - 1)
        raw.readline()  # the end of a line that began in the unit before
    yield from unmarked(_lines_before(raw, unit.stop))


def _lines_before(raw: BinaryIO, stop: int) -> Iterator[bytes]:
    while raw.tell() < stop and (line := raw.readline()):
        yield line


def _read_lines(
    lines: Iterator[tuple[int, bytes]], raw: BinaryIO, path: Path, on_invalid: OnInvalid
) -> Iterator[Document]:
    """Every non-blank line of a text file, as a document."""
    for number, line in lines:
        if line.strip():
            where = f"{readable(path)}:{number}"
            yield from _document_of_bytes(line.rstrip(b"\r\n"), where, path, raw.tell(), on_invalid)


def _read_document(raw: BinaryIO, path: Path, on_invalid: OnInvalid) -> Iterator[Document]:
    """A text file as one document."""
    content = b"".join(text_lines(raw, path))
    yield from _document_of_bytes(content, f"{readable(path)}:1", path, raw.tell(), on_invalid)


def _document_of_bytes(
    content: bytes, where: str, path: Path, consumed: int, on_invalid: OnInvalid
) -> Iterator[Document]:
    fields = {"text": content.decode("utf-8", "surrogateescape")}
    document = document_from_fields(fields, "text", where, readable(path.name), consumed, on_invalid)
    if document is not None:
        yield document


def _read_dataset(unit: Unit, text_field: str, split: str, on_invalid: OnInvalid) -> Iterator[Document]:
    """Rows [start, stop) of a data set; `consumed` grows evenly with the rows."""
    dataset = open_dataset(unit.path, split)
    dataset = dataset.select_columns(columns_for(text_field, dataset.data.schema, unit.name))
    stored = dataset.with_format("arrow")
    for row in range(unit.start, unit.stop):
        where = f"{unit.name}:row {row + 1}"
        consumed = unit.size * (row - unit.start) // (unit.stop - unit.start)
        try:
            fields = dataset[row]
        except UnicodeDecodeError:
            table = stored[row : row + 1]
            fields = {column: plain_value(table.column(column)[0]) for column in table.column_names}
        document = document_from_fields(fields, text_field, where, unit.name, consumed, on_invalid)
        if document is not None:
            yield document
