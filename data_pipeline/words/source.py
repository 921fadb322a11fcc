"""`WordSource`: word images and their labels as training samples.

    image   uint8 [3, H, W]     scaled to the model's size, the aspect ratio not kept (docs/methods/ocr.md: images)
    ids     int64 [T + 2]       [B], characters, [E], padding

Augmented, the source holds every word several times: copy c of word w is sample c * words + w, each copy with its own
random operations. So a sample is still a pure function of its number, and one pass over the source is `copies` passes
over the words, shuffled together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.errors import SourceError
from data_pipeline.source import DocumentSpan, Sample
from data_pipeline.words.augment import augment_word, timm_operations
from data_pipeline.words.labels import LabelRules, clean_labels
from data_pipeline.words.stores import content_hash, open_words
from tokenizer.characters import CharacterTokenizer
from tokenizer.inputs.image_table import ImageTable
from tokenizer.inputs.images import ImageError, decode_image


class WordSource:
    """Word images of one store.

    Args:
        store: what `open_words` opens, or its path.
        tokenizer: the charset.
        size: (height, width) of the images.
        max_length: characters of the longest label; longer ones are dropped.
        copies: augmented copies of each word; 0: every word once, as it is.
        seed: of the augmentation.
        max_dropped: share of the labels that may be dropped (too long, empty, none of its characters in the charset).
        max_altered: share of the labels that may lose characters outside the charset.

    Raises:
        SourceError: no word is left, or the store is damaged.
        LabelError: more labels are lost than allowed.
    """

    def __init__(
        self,
        store: ImageTable | str | Path,
        tokenizer: CharacterTokenizer,
        size: tuple[int, int],
        max_length: int = 25,
        copies: int = 0,
        seed: int = 0,
        max_dropped: float = 0.01,
        max_altered: float = 0.1,
    ) -> None:
        self.where = str(store) if isinstance(store, (str, Path)) else store.name(0).partition(":")[0]
        self.store = open_words(store) if isinstance(store, (str, Path)) else store
        self.tokenizer, self.size, self.max_length = tokenizer, size, max_length
        self.copies, self.seed = copies, seed
        if copies:
            timm_operations()  # once, before the loader's workers are forked
        self.rules = LabelRules.for_charset(tokenizer.characters, max_length)
        kept, self.labels, self.report = clean_labels(self.store.name, self.store.column("text"), self.rules)
        self.report.refuse_above(max_dropped, max_altered, self.where)
        if not kept:
            raise SourceError(f"{self.where}: holds no word images")
        self._kept = np.array(kept, dtype=np.int64)
        self._hash = content_hash(self.store)

    @property
    def words(self) -> int:
        """Words, each counted once."""
        return len(self._kept)

    def __len__(self) -> int:
        return self.words * max(1, self.copies)

    def sample(self, index: int) -> Sample:
        """Sample `index`. Raises `SourceError` when out of range, `ImageError` when its image cannot be read."""
        if not 0 <= index < len(self):
            raise SourceError(f"{self.where}: sample {index} asked for, but there are {len(self)}")
        word = index % self.words
        number = int(self._kept[word])
        image = decode_image(self.store.image(number), self.store.name(number))
        if min(image.size) < 2:
            raise ImageError(f"{self.store.name(number)}: {image.size[0]} x {image.size[1]} pixels show no word")
        if self.copies:
            image = augment_word(image, np.random.default_rng([self.seed, index]))
        return {
            "image": to_array(image, self.size),
            "ids": self.tokenizer.encode(self.labels[word], self.max_length + 2),
        }

    def documents(self, index: int) -> list[DocumentSpan]:
        """One word image is one document."""
        word = index % self.words
        return [DocumentSpan(self.where, int(self._kept[word]), 0, 1, 0)]

    def identity(self) -> dict[str, Any]:
        """What the samples depend on."""
        return {
            "kind": "words",
            "content": self._hash,
            "charset": self.tokenizer.characters,
            "size": list(self.size),
            "max_length": self.max_length,
            "copies": self.copies,
            "seed": self.seed,
        }


def to_array(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scaled by bicubic interpolation to (height, width): uint8 [3, H, W]."""
    scaled = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))
