"""Word images drawn from word lists, many a second: on the fly as a Source, or straight into an LMDB.

Sample i is a pure function of (seed, i), the words, the fonts and the photographs, so a data set of 10,000 words is the
beginning of one of 100,000, and every worker draws the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.processes import WorkerContext, available_cores, end_with_parent
from data_pipeline.errors import SourceError
from data_pipeline.source import DocumentSpan, Sample
from data_pipeline.words.backgrounds import read_photographs
from data_pipeline.words.fonts import Fonts, find_fonts
from data_pipeline.words.labels import LabelRules
from data_pipeline.words.lists import read_words
from data_pipeline.words.render import Look, render_word
from data_pipeline.words.source import to_array
from data_pipeline.words.stores import LmdbWriter
from tokenizer.characters import CharacterTokenizer, read_charset
from tokenizer.inputs.broken_text import BrokenText

CHUNK = 256
"""Words that a worker draws at a time."""


@dataclass(frozen=True)
class SynthConfig:
    """Which words are drawn, and how."""

    words: list[str]
    """Word lists (.txt, .tsv, also packed; one word a line) or texts (.jsonl, .parquet, ...) whose words are taken."""
    size: int
    """Images. The first n of a larger set are the same n images."""
    seed: int = 0
    """Names the set."""
    digits: float = 0.1
    """Share of the samples that show a random number of up to six digits instead of a word."""
    capitals: float = 0.3
    """Share of the samples that are written in capitals, and again as many with a capital first letter."""
    shortest: int = 1
    """Characters of the shortest word that is drawn."""
    longest: int = 25
    """Characters of the longest."""
    fonts: list[str] = field(default_factory=list)
    """Folders of fonts; none: the system's, and those that matplotlib brings."""
    photographs: list[str] = field(default_factory=list)
    """Image files, folders of them, or .parquet files with a column `image`, for backgrounds."""
    look: Look = field(default_factory=Look)
    """How strongly words are changed."""
    broken_text: BrokenText = "skip"
    """Lines and documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of
    all; replace what is broken by U+FFFD, counted; or refuse the first one."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: must be at least 1, got {self.size}")
        for name in ("digits", "capitals"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must lie between 0 and 1, got {getattr(self, name)}")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest, longest: expected 1 <= shortest <= longest, got {self.shortest}, {self.longest}"
            )

    def to_mapping(self) -> dict[str, Any]:
        """The settings as JSON holds them, without those of the command."""
        return {field.name: asdict(self)[field.name] for field in fields(SynthConfig)}

    @staticmethod
    def from_mapping(content: Mapping[str, Any]) -> SynthConfig:
        """What `to_mapping` was taken of."""
        return SynthConfig(**{**content, "look": Look(**content["look"])})


@dataclass(frozen=True)
class SynthCommand(SynthConfig):
    """Draws word images into an LMDB."""

    output: str = ""
    """Folder of the LMDB; it appears when complete."""
    charset: str = "94"
    """36, 62, 94, or a text file with the characters; others are removed from the words."""
    workers: int = 0
    """Processes; 0: one per CPU core. They do not change the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output:
            raise ValueError("output: name the folder to write")
        if self.workers < 0:
            raise ValueError(f"workers: must be 0 or more, got {self.workers}")


class WordPainter:
    """Text and image of sample i.

    Raises:
        SourceError: no word list, no words, no fonts, or no font that draws a word.
    """

    def __init__(self, config: SynthConfig, charset: str) -> None:
        if not config.words:
            raise SourceError("synthetic.words is empty: name at least one word list, or texts to take words from")
        self.config, self.charset = config, charset
        rules = LabelRules.for_charset(charset, config.longest)
        words, self.report = read_words(config.words, rules, broken_text=config.broken_text)
        self.words = [word for word in words if len(word) >= config.shortest]
        self._drawn_digits = [character for character in "0123456789" if character in charset]
        self.fonts = Fonts(find_fonts(config.fonts))
        self.photographs = read_photographs(config.photographs)
        self.words = [word for word in self.words if self.fonts.drawing(word)]
        if not self.words:
            raise SourceError(f"{', '.join(config.words)}: no word that a font here can draw; name --fonts")

    @cached_property
    def content(self) -> str:
        """SHA-256 of what the samples depend on besides the configuration's numbers."""
        digest = hashlib.sha256("\0".join(self.words).encode())
        for font in self.fonts.paths:
            digest.update(font.read_bytes())
        for photograph in self.photographs:
            digest.update(photograph.tobytes())
        return digest.hexdigest()

    def draw(self, index: int) -> tuple[str, Image.Image]:
        """Text and RGB image of sample `index`."""
        rng = np.random.default_rng([self.config.seed, index])
        text = self._text(rng)
        fonts = self.fonts.drawing(text)
        font = fonts[int(rng.integers(len(fonts)))]
        return text, render_word(text, font, rng, self.config.look, self.photographs)

    def _text(self, rng: np.random.Generator) -> str:
        if self._drawn_digits and rng.random() < self.config.digits:
            longest = min(6, self.config.longest)
            length = int(rng.integers(min(self.config.shortest, longest), longest + 1))
            return "".join(rng.choice(self._drawn_digits, length).tolist())
        word = self.words[int(rng.integers(len(self.words)))]
        case = rng.random()
        if case < self.config.capitals:
            changed = word.upper()
        elif case < 2 * self.config.capitals:
            changed = word[:1].upper() + word[1:]
        else:
            changed = word
        # What the charset, the fonts or the length cannot hold stays as it is in the list.
        fits = len(changed) == len(word) and all(character in self.charset for character in changed)
        return changed if fits and self.fonts.drawing(changed) else word


class SynthWords:
    """`WordPainter` as a source: see `WordSource` for the samples.

    Args:
        config: words and looks.
        tokenizer: the charset.
        size: (height, width) of the images.
        max_length: characters of the longest label that the model takes.
    """

    def __init__(
        self, config: SynthConfig, tokenizer: CharacterTokenizer, size: tuple[int, int], max_length: int = 25
    ) -> None:
        if config.longest > max_length:
            raise SourceError(
                f"synthetic.longest is {config.longest}, the model reads {max_length} characters; lower it"
            )
        self.config, self.tokenizer, self.size, self.max_length = config, tokenizer, size, max_length
        self.painter = WordPainter(config, tokenizer.characters)

    def __len__(self) -> int:
        return self.config.size

    def sample(self, index: int) -> Sample:
        """Sample `index`."""
        if not 0 <= index < len(self):
            raise SourceError(f"synthetic words: sample {index} asked for, but there are {len(self)}")
        text, image = self.painter.draw(index)
        return {"image": to_array(image, self.size), "ids": self.tokenizer.encode(text, self.max_length + 2)}

    def documents(self, index: int) -> list[DocumentSpan]:
        """One word image is one document."""
        return [DocumentSpan("synthetic words", index, 0, 1, 0)]

    def identity(self) -> dict[str, Any]:
        """What the samples depend on."""
        elsewhere = ("fonts", "photographs", "broken_text")  # what they led to is in `content`
        settings = {name: value for name, value in asdict(self.config).items() if name not in elsewhere}
        return {
            "kind": "synthetic words",
            "content": self.painter.content,
            "settings": settings | {"words": len(self.painter.words)},
            "charset": self.tokenizer.characters,
            "image_size": list(self.size),
            "max_length": self.max_length,
        }


def synthesise(config: SynthCommand) -> str:
    """Draws the images into an LMDB, and says what it holds.

    Raises:
        SourceError: no words or fonts, a worker was killed, or the output is there already.
    """
    painter = WordPainter(config, read_charset(config.charset))
    chunks = [range(start, min(start + CHUNK, config.size)) for start in range(0, config.size, CHUNK)]
    draw = partial(_draw_chunk, json.dumps(config.to_mapping()), painter.charset)
    workers = config.workers or available_cores()
    with LmdbWriter(Path(config.output)) as writer, tqdm(total=config.size, unit="word", desc="draw") as bar:
        try:
            with ProcessPoolExecutor(workers, WorkerContext(), end_with_parent) as pool:
                for drawn in pool.map(draw, chunks):
                    for text, content in drawn:
                        writer.add(content, text)
                    bar.update(len(drawn))
        except BrokenProcessPool as error:
            raise SourceError("a worker process was killed, probably for want of memory; use fewer workers") from error
    return (
        f"{config.output}: {config.size:,} images of {len(painter.words):,} words in {len(painter.fonts.paths)} fonts"
        f" on {len(painter.photographs)} photographs\n  word lists: {painter.report.to_text()}"
    )


def _draw_chunk(settings: str, charset: str, numbers: Sequence[int]) -> list[tuple[str, bytes]]:
    """Texts and PNG files of some samples, in a worker."""
    drawn = []
    for number in numbers:
        text, image = _open_painter(settings, charset).draw(number)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        drawn.append((text, buffer.getvalue()))
    return drawn


@cache
def _open_painter(settings: str, charset: str) -> WordPainter:
    """One painter per worker; settings are JSON, because a cache needs something that does not change."""
    return WordPainter(SynthConfig.from_mapping(json.loads(settings)), charset)
