"""Words of texts or lists, split into words to train on and words that are never trained on.

    OUTPUT/train.txt  valid.txt     one distinct word a line, sorted

The side of a word is a keyed hash of the word itself, so more text moves none from one side to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.demo.keyed_split import is_held_out
from data_pipeline.errors import SourceError
from data_pipeline.words.labels import LabelRules
from data_pipeline.words.lists import read_words
from tokenizer.characters import read_charset
from tokenizer.inputs.broken_text import BrokenText


@dataclass(frozen=True)
class SampleWordsConfig:
    """What `python -m data_pipeline sample-words` makes."""

    words: list[str]
    """Word lists (.txt, .tsv, also packed; one word a line) or texts (.jsonl, .parquet, ...) whose words are taken."""
    output: str
    """Folder for train.txt and valid.txt; these two are replaced."""
    charset: str = "36"
    """36, 62, 94, or a text file with the characters; others are removed from the words."""
    shortest: int = 1
    """Characters of the shortest word that is kept."""
    longest: int = 25
    """Characters of the longest."""
    valid_fraction: float = 0.1
    """Share of the words that is held out."""
    seed: int = 0
    """Key of the hash that splits."""
    broken_text: BrokenText = "skip"
    """Lines and documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of
    all; replace what is broken by U+FFFD, counted; or refuse the first one."""

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("words: name at least one word list, or texts to take words from")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"valid_fraction: must be between 0 and 1, got {self.valid_fraction}")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest, longest: expected 1 <= shortest <= longest, got {self.shortest}, {self.longest}"
            )


def sample_words(config: SampleWordsConfig) -> str:
    """Writes both lists, and says what they hold and what the charset did to the words.

    Raises:
        SourceError: a file is missing, or one of the two lists would be empty.
        CharsetError: there is no such charset.
    """
    rules = LabelRules.for_charset(read_charset(config.charset))
    found, report = read_words(config.words, rules, broken_text=config.broken_text)
    words = [word for word in found if config.shortest <= len(word) <= config.longest]
    lists: dict[str, list[str]] = {"train": [], "valid": []}
    for word in words:
        held_out = is_held_out(word.encode("utf-8"), config.valid_fraction, config.seed)
        lists["valid" if held_out else "train"].append(word)
    for split, chosen in lists.items():
        if not chosen:
            raise SourceError(
                f"{', '.join(config.words)}: {len(words):,} words of {config.shortest} to {config.longest} characters,"
                f" none of them for {split}.txt; give more words, or change valid_fraction"
            )
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    for split, chosen in lists.items():
        (folder / f"{split}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return (
        f"{config.output}: {len(lists['train']):,} words in train.txt, {len(lists['valid']):,} in valid.txt,"
        f" {len(found) - len(words):,} left out for their length\n  {report.to_text()}"
    )
