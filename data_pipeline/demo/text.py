"""Writes a small corpus, split into train and validation by document: the built-in one, local files, or a hub data set.

    OUTPUT/train.en.jsonl  train.zh.jsonl  valid.en.jsonl  valid.zh.jsonl    objects {id, text, source, lang}
    OUTPUT/corpus.json                                        counts, bytes, licences, what was left out

The side a document falls on is a keyed hash of its text, so it does not depend on the order, the number or the names of
the files, and a repeated document never has one copy on each side. One pass, constant memory; the built-in corpus takes
about two seconds.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Literal

import orjson
from tqdm import tqdm

from common.errors import DataError
from data_pipeline.demo.corpus_builtin import LICENSES, builtin_documents
from data_pipeline.demo.keyed_split import is_held_out
from tokenizer.inputs.broken_text import BrokenText, InvalidDocumentError, TextCheck
from tokenizer.inputs.documents import (
    Document,
    OnInvalid,
    document_from_fields,
    list_files,
    looks_local,
    read_documents,
)

MAX_LANGUAGES = 64
MAX_SOURCES = 1000
"""Values of `source` counted one by one; a field that differs in every document must not fill the memory."""
EXAMPLES_KEPT = 10

Counts = dict[tuple[str, str], Counter[str]]
"""(file, source) -> documents and bytes."""


@dataclass(frozen=True)
class SampleConfig:
    """What `python -m data_pipeline sample` makes."""

    output: str
    """Directory to write to; files of an earlier sample there are replaced."""
    source: list[str] = field(default_factory=list)
    """Files or directories (.jsonl, .json, .txt, each also .gz, .bz2, .xz, .zst; .parquet), or ids of hub data sets
    (`owner/name` or `owner/name@configuration`). Without any: the built-in corpus."""
    text_field: str = "text"
    """Field or column that holds the text."""
    hub_split: str = "train"
    """Split of hub data sets to stream."""
    valid_fraction: float = 0.02
    """Share of the documents that goes to validation."""
    max_bytes: int | None = None
    """Take at most this many bytes of text from each entry of `source`. None: take everything."""
    on_invalid: Literal["error", "skip"] = "error"
    """Stop at a document that cannot be used, or skip, count and report it. Empty documents are always skipped;
    those of broken text follow `broken_text`."""
    broken_text: BrokenText = "skip"
    """Documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of all;
    replace what is broken by U+FFFD, counted; or refuse the first one."""
    seed: int = 0
    """Key of the hash that splits."""

    def __post_init__(self) -> None:
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"valid_fraction: must be between 0 and 1, got {self.valid_fraction}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes: must be at least 1, got {self.max_bytes}")


@dataclass(frozen=True)
class SampleReport:
    """What was written; `corpus.json` holds the same."""

    output: str
    files: dict[str, dict[str, int]]
    """File name -> documents and bytes (of text, UTF-8)."""
    sources: dict[str, dict[str, Any]]
    """`source` field -> documents, bytes, licence (None where unknown)."""
    languages: list[str]
    """Languages that have a train and a validation file."""
    left_out: dict[str, Any]
    """Counts of what was not written and why, with the first examples of invalid documents."""
    altered: dict[str, int]
    """Counts of documents that were written otherwise than they were found."""
    config: dict[str, Any]
    """The `SampleConfig` without `output`."""

    def to_text(self) -> str:
        """A few lines for the terminal."""
        lines = [f"{self.output}:"]
        lines += [
            f"  {name:<16} {s['documents']:>9,} documents {s['bytes']:>13,} bytes" for name, s in self.files.items()
        ]
        lines += [f"  left out: {count:,} {what}" for what, count in self.left_out["counts"].items()]
        lines += [f"  altered: {count:,} documents of {what}" for what, count in self.altered.items()]
        return "\n".join(lines)


def sample(config: SampleConfig) -> SampleReport:
    """Writes the corpus. Files appear under their names only when everything is complete.

    Raises:
        FileNotFoundError: a source does not exist, or a package of the built-in corpus is not installed.
        InvalidDocumentError: a document cannot be used and `on_invalid` is "error"; names file and line.
        ValueError: a file is damaged, a hub data set cannot be streamed, or a split of a language stays empty.
    """
    rejected = _Rejected(TextCheck(config.broken_text), strict=config.on_invalid == "error")
    dropped: Counter[str] = Counter()
    documents = _source_documents(config, rejected, dropped) if config.source else builtin_documents(dropped)
    output = Path(config.output)
    for entry in config.source:
        if Path(entry).is_dir() and output.resolve().is_relative_to(Path(entry).resolve()):
            raise DataError(f"output {output} lies in the source {entry}, which would read it the next time; move it")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".sample-") as folder:
        counts = _write_documents(documents, config, Path(folder))
        rejected.broken.finish(sum(count["documents"] for count in counts.values()))
        languages = _complete_languages(counts, config, dropped)
        counts = {key: count for key, count in counts.items() if key[0].split(".")[1] in languages}
        files, sources = _totals(counts, 0), _totals(counts, 1)
        for earlier in [*output.glob("train.*.jsonl"), *output.glob("valid.*.jsonl")]:
            earlier.unlink()
        for name in files:
            (Path(folder) / name).rename(output / name)
    report = SampleReport(
        output=str(output),
        files=files,
        sources={name: {**count, "license": LICENSES.get(name)} for name, count in sources.items()},
        languages=languages,
        left_out={"counts": dict(dropped + rejected.counts), "examples": rejected.examples},
        altered={"broken text": rejected.broken.broken} if config.broken_text == "replace" else {},
        config={key: value for key, value in asdict(config).items() if key != "output"},
    )
    content = json.dumps({**asdict(report), "output": "."}, indent=1, ensure_ascii=False)
    (output / "corpus.json").write_text(content + "\n", encoding="utf-8")
    return report


def _write_documents(documents: Iterable[Document], config: SampleConfig, folder: Path) -> Counts:
    """One pass: a line of one file for each document."""
    counts: Counts = {}
    sources: set[str] = set()
    with ExitStack() as stack:
        writers: dict[str, BinaryIO] = {}
        for document in documents:
            lang = document.lang or detect_language(document.text)
            name = f"{_split(document.text, config)}.{lang}.jsonl"
            if name not in writers:
                _check_language(lang, document, len(writers))
                writers[name] = stack.enter_context((folder / name).open("wb"))
            row = {"id": document.id, "text": document.text, "source": document.source, "lang": lang}
            writers[name].write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            if len(sources) < MAX_SOURCES:
                sources.add(document.source)
            source = document.source if document.source in sources else "other sources"
            counts.setdefault((name, source), Counter()).update(documents=1, bytes=_text_bytes(document))
    return counts


def _totals(counts: Counts, part: int) -> dict[str, dict[str, int]]:
    """Sums over files (part 0) or sources (part 1), sorted by name."""
    totals: dict[str, Counter[str]] = {}
    for key, count in sorted(counts.items()):
        totals.setdefault(key[part], Counter()).update(count)
    return {name: dict(totals[name]) for name in sorted(totals)}


def detect_language(text: str) -> str:
    """`zh`, `en` or `other` from the scripts of the first 2,000 characters.

    Han characters carry about as much as three to four Latin letters, hence the weight. Kana and Hangul speak against
    Chinese. Any text in Latin script is called `en`: a `lang` field is the way to say more.
    """
    counts: Counter[str] = Counter()
    for character in text[:2000]:
        if "\u4e00" <= character <= "\u9fff" or "\u3400" <= character <= "\u4dbf":
            counts["zh"] += 3
        elif character.isalpha():
            latin = character.isascii() or "\u00c0" <= character <= "\u024f"
            counts["en" if latin else "other"] += 1
    if not counts:
        return "other"
    return max(counts, key=lambda lang: (counts[lang], lang))


class _Rejected:
    """Counts invalid documents and keeps the first examples; raises instead when strict, but never for empty ones, and
    for those of broken text as `broken` says."""

    def __init__(self, broken: TextCheck, strict: bool) -> None:
        self.broken, self.strict = broken, strict
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []

    def __call__(self, problem: InvalidDocumentError) -> bool:
        mended = problem.kind == "utf8" and self.broken(problem)
        if self.strict and problem.kind not in ("empty", "utf8"):
            raise InvalidDocumentError(problem.where, problem.kind, f"{problem.detail}; --on_invalid skip goes past it")
        if not mended:
            self.counts[f"invalid documents ({problem.kind})"] += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(str(problem))
        return mended


def _split(text: str, config: SampleConfig) -> str:
    """`valid` where the keyed 64-bit hash of the text falls under the fraction."""
    return "valid" if is_held_out(text.encode("utf-8"), config.valid_fraction, config.seed) else "train"


def _check_language(lang: str, document: Document, open_files: int) -> None:
    """The label becomes part of a file name, so it must look like one and there must not be thousands of them."""
    if not re.fullmatch(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*", lang):
        raise InvalidDocumentError(document.id, "field", f"field 'lang' is {lang!r}, which is no language code")
    if open_files >= 2 * MAX_LANGUAGES:
        raise InvalidDocumentError(document.id, "field", f"field 'lang' has more than {MAX_LANGUAGES} different values")


def _complete_languages(counts: Counts, config: SampleConfig, dropped: Counter[str]) -> list[str]:
    """The languages that have both a train and a validation file; documents of the others are left out and counted."""
    if not counts:
        raise DataError(f"{', '.join(config.source)}: no document with text")
    files = _totals(counts, 0)
    found = sorted({name.split(".")[1] for name in files})
    complete = [lang for lang in found if f"train.{lang}.jsonl" in files and f"valid.{lang}.jsonl" in files]
    for lang in sorted(set(found) - set(complete)):
        few = sum(count["documents"] for name, count in files.items() if name.split(".")[1] == lang)
        dropped[f"documents of language '{lang}' (too few to split)"] += few
    if not complete:
        raise DataError(
            f"no language ({', '.join(found)}) has documents in both train and valid: there are too few for "
            f"valid_fraction {config.valid_fraction}; change the fraction or add text"
        )
    return complete


def _text_bytes(document: Document) -> int:
    return len(document.text.encode("utf-8"))


def _source_documents(config: SampleConfig, on_invalid: OnInvalid, dropped: Counter[str]) -> Iterator[Document]:
    for source in config.source:
        if looks_local(source):
            documents = _local_documents(source, config, on_invalid)
        else:
            documents = _hub_documents(source, config, on_invalid)
        taken = 0
        for document in documents:
            if config.max_bytes is not None and taken + _text_bytes(document) > config.max_bytes:
                dropped[f"the rest of {source} (max_bytes)"] += 1
                break
            taken += _text_bytes(document)
            yield document


def _local_documents(source: str, config: SampleConfig, on_invalid: OnInvalid) -> Iterator[Document]:
    files = list_files([source])
    with tqdm(total=sum(file.stat().st_size for file in files), unit="B", unit_scale=True, desc=source) as bar:
        done = 0
        for file in files:
            for document in read_documents(file, config.text_field, on_invalid):
                bar.update(done + document.consumed - bar.n)
                yield document
            done += file.stat().st_size
            bar.update(done - bar.n)


def _hub_documents(source: str, config: SampleConfig, on_invalid: OnInvalid) -> Iterator[Document]:
    from datasets import load_dataset  # a second of import that local files do not need

    name, _, configuration = source.partition("@")
    try:
        rows = load_dataset(name, configuration or None, split=config.hub_split, streaming=True)
    except Exception as error:  # the hub client raises many unrelated types; the message has to name the source
        raise DataError(
            f"{source}: no file or directory of this name, and not readable as a hub data set "
            f"({type(error).__name__}: {error})"
        ) from error
    for number, row in enumerate(tqdm(rows, desc=source, unit=" documents"), start=1):
        document = document_from_fields(row, config.text_field, f"{source}:row {number}", source, 0, on_invalid)
        if document is not None:
            yield document
