"""Text as stretches that are encoded independently, so that a counter needs to encode each of them only once.

English repeats itself: eight megabytes hold 50,000 different stretches of a word and what clings to it. A byte-level
tokenizer cuts text by GPT-2's regular expression before it merges, and some places are always cut, whatever is around:

    `word word`     before a single space between an ASCII character and an ASCII letter: no token ends in a space that
                    follows another character, and ` ?\\p{L}+` takes the space and the letter
    `word, word`    between an ASCII letter and ASCII punctuation other than an apostrophe: no token holds both

The expression looks ahead, and only past white space; so stretches between such places give the ids of the whole text.
Digits, which may be split off first, change nothing there. Other pre-tokenisers get no such promise.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tokenizer.encoder import Encoder

BORDER = re.compile(r"(?<=[!-~])(?= [A-Za-z])|(?<=[A-Za-z])(?=[,.;:!?\"()-])")


def cuts_independently(backend: Tokenizer) -> bool:
    """Whether this pipeline gives the same ids for a text and for its stretches, one after the other.

    Special tokens are no matter: the encoders here never read one out of a text.
    """
    content = json.loads(backend.to_str())
    symbols = [token for token in content["added_tokens"] if not token["special"]]
    if content["normalizer"] is not None or any(map(_reaches_over_borders, symbols)):
        return False
    outer = content["pre_tokenizer"] or {}
    nodes: list[dict[str, Any]] = outer.get("pretokenizers", [outer])
    *before, last = nodes
    return (
        all(node["type"] == "Digits" for node in before)
        and last.get("type") == "ByteLevel"
        and last["use_regex"]
        and not last["add_prefix_space"]
    )


def _reaches_over_borders(symbol: dict[str, Any]) -> bool:
    looks_around = symbol["single_word"] or symbol["lstrip"] or symbol["rstrip"]
    return looks_around or len(BORDER.split(symbol["content"])) > 1


def count_stretches(texts: Iterable[str], encode: Encoder, vocab_size: int) -> np.ndarray:
    """How often each id occurs in the texts, [vocab_size] int64; for encoders that cut independently."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(BORDER.split(text))
    encoded: Sequence[Sequence[int]] = encode(list(found))
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ids = np.fromiter((id_ for stretch in encoded for id_ in stretch), np.int64, int(lengths.sum()))
    times = np.repeat(np.fromiter(found.values(), np.int64, len(found)), lengths)
    counts = np.zeros(vocab_size, dtype=np.int64)
    np.add.at(counts, ids, times)
    return counts
