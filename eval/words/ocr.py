"""Word accuracy of text recognisers on benchmark folders (docs/methods/ocr.md: evaluation).

    accuracy        label and reading are equal after the rules of the evaluation charset (36: digits, lower case)
    case-sensitive  the same with the 94 printable characters
    1 - NED         1 - edit distance / length of the longer one, mean; at the evaluation charset

Means over benchmarks are weighted by images. An image that cannot be read, or a label that the charset empties, is
counted and named, and left out for every recogniser alike.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from data_pipeline.errors import SourceError
from data_pipeline.words.labels import LabelRules
from data_pipeline.words.stores import find_stores, open_words
from eval.commands import OcrOptions
from eval.probes.collapse import named_models
from eval.report.pictures import write_caption
from eval.words.recognisers import Reading, Recogniser, open_recogniser
from eval.words.sheet import ReadWord, save_sheet
from tokenizer.characters import CHARSETS, read_charset
from tokenizer.inputs.images import ImageError, decode_image

CASED = "94"
SHOWN = 40
"""Words of a sheet."""


@dataclass(frozen=True)
class Word:
    """An image to be read."""

    name: str
    label: str
    image: Image.Image


@dataclass
class Score:
    """One recogniser on one benchmark."""

    images: int = 0
    accuracy: float = 0.0
    case_sensitive: float = 0.0
    similarity: float = 0.0
    """1 - NED."""
    confidence: float = 0.0
    length: float = 0.0
    """Mean length of the readings."""
    seconds: float = 0.0


@dataclass
class Benchmark:
    """Words of one benchmark that can be scored."""

    name: str
    words: list[Word] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why, by sample."""


def one_minus_ned(label: str, reading: str) -> float:
    """1 - edit distance / length of the longer one; two empty strings are equal."""
    longest = max(len(label), len(reading))
    return 1 - Levenshtein.distance(label, reading) / longest if longest else 1.0


def find_benchmarks(folder: Path) -> dict[str, Path]:
    """Benchmarks by name: the folder's Parquet files and folders; or the one that the path itself is."""
    return {path.stem: path for path in find_stores(folder)}


def read_benchmark(name: str, path: Path, rules: LabelRules, limit: int | None, max_unreadable: float) -> Benchmark:
    """Opens every image once.

    Raises:
        SourceError: more images than allowed cannot be read; shows some.
    """
    store, benchmark, unreadable = open_words(path), Benchmark(name), []
    labels = store.column("text")[:limit]
    for index, label in enumerate(labels):
        if not rules.clean(label).text:
            benchmark.left_out.append(f"{store.name(index)}: label {label!r} is empty or too long for the charset")
            continue
        try:
            image = decode_image(store.image(index), store.name(index))
        except ImageError as error:
            unreadable.append(str(error))
            continue
        benchmark.words.append(Word(store.name(index), label, image))
    if len(unreadable) > max_unreadable * max(1, len(labels)):
        raise SourceError(f"{path}: {len(unreadable)} images cannot be read, {'; '.join(unreadable[:3])}")
    benchmark.left_out += unreadable
    return benchmark


def correct(words: Sequence[Word], readings: Sequence[Reading], rules: LabelRules) -> list[bool]:
    """Which words were read as their label says, after the rules."""
    return [
        rules.clean(word.label).text == rules.clean(reading.text).text
        for word, reading in zip(words, readings, strict=True)
    ]


def read_words(
    recogniser: Recogniser, words: Sequence[Word], batch_size: int, title: str
) -> tuple[list[Reading], float]:
    """Reads words batch by batch under a progress bar; the readings, and the seconds that they took."""
    readings: list[Reading] = []
    started = time.perf_counter()
    for first in tqdm(range(0, len(words), batch_size), desc=title, leave=False):
        readings += recogniser.read([word.image for word in words[first : first + batch_size]])
    return readings, time.perf_counter() - started


def score(
    words: Sequence[Word], readings: Sequence[Reading], rules: LabelRules, seconds: float
) -> tuple[Score, list[ReadWord]]:
    """Score of the readings, and every word with its reading and similarity."""
    right, read = correct(words, readings, rules), []
    for word, reading in zip(words, readings, strict=True):
        similarity = one_minus_ned(*(rules.clean(text).text for text in (word.label, reading.text)))
        read.append(ReadWord(word.image, word.label, reading.text, similarity))
    count = max(1, len(words))
    return Score(
        len(words),
        sum(right) / count,
        sum(correct(words, readings, LabelRules(CHARSETS[CASED], rules.max_length))) / count,
        sum(word.similarity for word in read) / count,
        sum(reading.confidence for reading in readings) / count,
        sum(len(reading.text) for reading in readings) / count,
        seconds,
    ), read


def weighted_mean(scores: Sequence[Score], name: str) -> float:
    """Mean of a field over benchmarks, weighted by their images."""
    images = sum(score.images for score in scores)
    return sum(getattr(score, name) * score.images for score in scores) / images if images else math.nan


def run(options: OcrOptions) -> dict[str, dict[str, Score]]:
    """Scores every recogniser on every benchmark; prints the table, writes ocr.json and two sheets of words each."""
    rules = LabelRules.for_charset(read_charset(options.charset))
    benchmarks = [
        read_benchmark(name, path, rules, options.limit, options.max_unreadable)
        for name, path in find_benchmarks(Path(options.data)).items()
    ]
    results: dict[str, dict[str, Score]] = {}
    read: dict[str, list[ReadWord]] = {}
    for name, path in named_models(options.model).items():
        recogniser = open_recogniser(path, options.device, options.decoding, options.refinements)
        results[name], read[name] = {}, []
        for benchmark in benchmarks:
            title = f"{name}: {benchmark.name}"
            readings, seconds = read_words(recogniser, benchmark.words, options.batch_size, title)
            results[name][benchmark.name], words = score(benchmark.words, readings, rules, seconds)
            read[name] += words
    print(to_text(results, benchmarks, options.charset))
    if options.output:
        write(results, read, benchmarks, options)
    return results


def to_text(results: dict[str, dict[str, Score]], benchmarks: Sequence[Benchmark], charset: str) -> str:
    """The table, and what was left out."""
    width = max(16, *(len(name) + 2 for name in results))
    lines = [
        f"{'word accuracy %, charset ' + charset:<28}{'images':>8}" + "".join(f"{name:>{width}}" for name in results)
    ]
    for benchmark in benchmarks:
        cells = "".join(f"{100 * scores[benchmark.name].accuracy:>{width}.2f}" for scores in results.values())
        lines.append(f"{benchmark.name:<28}{len(benchmark.words):>8,}{cells}")
    for title, field_name, factor in (
        ("mean, by images", "accuracy", 100),
        ("  case-sensitive (94)", "case_sensitive", 100),
        ("  1 - NED", "similarity", 100),
        ("  confidence", "confidence", 100),
        ("  characters read", "length", 1),
    ):
        cells = "".join(f"{factor * weighted_mean(list(s.values()), field_name):>{width}.2f}" for s in results.values())
        lines.append(f"{title:<28}{sum(len(b.words) for b in benchmarks):>8,}{cells}")
    rates = [
        sum(s.images for s in scores.values()) / sum(s.seconds for s in scores.values()) for scores in results.values()
    ]
    lines.append(f"{'  images/s':<36}" + "".join(f"{rate:>{width},.0f}" for rate in rates))
    for benchmark in benchmarks:
        if benchmark.left_out:
            lines.append(f"{benchmark.name}: {len(benchmark.left_out)} left out: {'; '.join(benchmark.left_out[:3])}")
    return "\n".join(lines)


def write(
    results: dict[str, dict[str, Score]],
    read: dict[str, list[ReadWord]],
    benchmarks: Sequence[Benchmark],
    options: OcrOptions,
) -> None:
    """ocr.json, ocr.txt; words_NAME.png and errors_NAME.png for each recogniser, with captions."""
    folder = Path(str(options.output))
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "charset": options.charset,
        "decoding": options.decoding,
        "refinements": options.refinements,
        "results": {name: {key: asdict(value) for key, value in scores.items()} for name, scores in results.items()},
        "mean": {
            name: {
                key: weighted_mean(list(scores.values()), key) for key in ("accuracy", "case_sensitive", "similarity")
            }
            for name, scores in results.items()
        },
        "left_out": {benchmark.name: benchmark.left_out for benchmark in benchmarks},
    }
    (folder / "ocr.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "ocr.txt").write_text(to_text(results, benchmarks, options.charset) + "\n", encoding="utf-8")
    for name, words in read.items():
        spread = words[:: max(1, len(words) // SHOWN)][:SHOWN]
        errors = sorted((word for word in words if word.similarity < 1), key=lambda word: word.similarity)
        for kind, shown, title in (
            ("words", spread, f"{name}: {len(spread)} of {len(words):,} words"),
            ("errors", errors[:SHOWN], f"{name}: {len(errors):,} errors, the worst"),
        ):
            save_sheet(shown, title, folder / f"{kind}_{name}.png")
            write_caption(folder / f"{kind}_{name}.png", f"{title}. Above: the label; below: what was read.")
    print(f"written to {folder}")
