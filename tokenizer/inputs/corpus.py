"""The texts of files and folders, one after the other, under one progress bar and one policy for what is broken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from tokenizer.inputs.broken_text import TextCheck
from tokenizer.inputs.documents import list_files, read_documents


def corpus_texts(
    paths: Iterable[str | Path], text_field: str, check: TextCheck, progress: str | None = None
) -> Iterator[str]:
    """Yields the texts of all documents with text; at the end `check` judges what it was told.

    Args:
        paths: files and folders.
        text_field: field or column that holds the text.
        check: counts what is empty or broken.
        progress: what the progress bar says; None: no bar.

    Raises:
        FileNotFoundError: a path does not exist.
        InvalidDocumentError: a document cannot be used, or too many are broken; names file and line.
        ValueError: a file is damaged.
    """
    files = list_files(paths)
    total, done, documents = sum(file.stat().st_size for file in files), 0, 0
    with tqdm(total=total, unit="B", unit_scale=True, desc=progress, disable=progress is None) as bar:
        for file in files:
            for document in read_documents(file, text_field, check):
                bar.update(done + document.consumed - bar.n)
                documents += 1
                yield document.text
            done += file.stat().st_size
            bar.update(done - bar.n)
    check.finish(documents)
