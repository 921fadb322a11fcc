"""Shapes of PanGu-pi from 1 M to 7 B parameters by the tiny-model paper's rules (docs/methods/tiny_lm.md: shapes).

    depth       21 layers at width 1792 and 29 at 4096 are the paper's, 10 at 256 and 3 at 128 this project's; between
                them the logarithms are interpolated. The paper finds depth to matter most, up to the speed it costs.
    FFN         8/3 of the width, rounded up to a multiple of 256, below width 1024 of 64, as in the released model
    heads       128 wide, below width 1024 64 wide
    vocabulary  the largest of a list whose embedding and head hold less than a fifth of the parameters
    tying       of embedding and head below width 1024, where the vocabulary would be most of the model otherwise
    additions   a series activation of two terms and one augmented shortcut with 1/32 of the width (arXiv 2312.17276)

The rules give the paper's 1B Pro to the number: 1792 x 21, FFN 4864, 48,000 pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_config import load_model_config

DEPTHS = {128: 3, 256: 10, 1792: 21, 4096: 29}
"""Layers by width, of shapes that exist."""
WIDTHS = (128, *range(192, 1024, 64), *range(1024, 2048, 128), *range(2048, 4097, 256))
"""Hidden sizes to choose from."""
VOCABULARIES = (4096, 6144, 8192, 12288, 16384, 24576, 32000, 48000)
"""Sizes to choose from; below the first, texts become long."""
VOCABULARY_SHARE = 0.2
"""The most of the parameters that embedding and head may hold."""
LARGE_WIDTH = 1024
"""From here on heads are 128 wide, FFN sizes multiples of 256, and the head is not tied to the embedding."""


def depth(width: int) -> int:
    """Layers of a model of that width."""
    for (narrow, few), (wide, many) in pairwise(sorted(DEPTHS.items())):
        if width <= wide:
            position = math.log(width / narrow) / math.log(wide / narrow)
            return round(few * (many / few) ** position)
    return max(DEPTHS.values())


def shape(width: int, vocabulary: int | None = None) -> dict[str, Any]:
    """The fields of a model of that width.

    Args:
        width: hidden size, a multiple of 64.
        vocabulary: pieces of a tokenizer that exists; None takes the rule's.
    """
    large = width >= LARGE_WIDTH
    multiple = 256 if large else 64
    fields = {
        "hidden_size": width,
        "intermediate_size": -(-8 * width // (3 * multiple)) * multiple,
        "num_hidden_layers": depth(width),
        "num_attention_heads": width // (128 if large else 64),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": not large,
        "series_terms": 2,
        "shortcut_count": 1,
        "shortcut_reduction": 32,
    }
    if vocabulary is None:
        small = [pieces for pieces, share in _vocabulary_shares(fields) if share < VOCABULARY_SHARE]
        vocabulary = max(small, default=VOCABULARIES[0])
    return {"vocab_size": vocabulary, **fields}


def shapes(vocabulary: int | None = None) -> Iterator[tuple[dict[str, Any], PanguPiConfig]]:
    """Every shape by these rules from narrow to wide: its fields, and the configuration that they make."""
    for width in WIDTHS:
        fields = shape(width, vocabulary)
        yield fields, load_model_config(fields)


def _vocabulary_shares(fields: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """Each vocabulary with the share of the parameters that it would hold."""
    counted = count_parameters(load_model_config({**fields, "vocab_size": VOCABULARIES[0]}))
    per_piece = (counted.embedding + counted.head) // VOCABULARIES[0]
    body = counted.total - VOCABULARIES[0] * per_piece
    for pieces in VOCABULARIES:
        held = pieces * per_piece
        yield pieces, held / (body + held)
