"""User-defined symbols: strings that are one token wherever they occur, and control symbols, which text cannot spell.

BPE models cut a text at its user-defined symbols first, so those stay whole. A unigram model instead lets them compete
with a score of -0.1 (SentencePiece's rule), and a piece that overlaps one can win. `check_whole` proves that none does.
"""

from collections.abc import Mapping, Sequence

from common.errors import DataError
from tokenizer.convert import ESCAPE, SPACE, USER_SYMBOL_SCORE

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
"""Ids 0 to 3 of every model that we train."""


def check_symbols(user_defined: Sequence[str], control: Sequence[str]) -> None:
    """Raises ValueError for a symbol that no tokenizer could keep, naming it."""
    seen = set(SPECIAL_TOKENS)
    for field, symbols in (("user_defined_symbols", user_defined), ("control_symbols", control)):
        for symbol in symbols:
            if not symbol or any(character.isspace() or character in (ESCAPE, SPACE, "\0") for character in symbol):
                raise ValueError(f"{field}: {symbol!r} is empty or holds a space, a control character or U+2581")
            if symbol in seen:
                raise ValueError(f"{field}: {symbol!r} is there twice, or is one of {', '.join(SPECIAL_TOKENS)}")
            if symbol.startswith("<0x") and len(symbol) == 6:
                raise ValueError(f"{field}: {symbol!r} is how byte pieces are written; choose another name")
            seen.add(symbol)


def check_whole(symbols: Sequence[str], scores: Mapping[str, float]) -> None:
    """Proves that a unigram model never breaks a symbol.

    A path that breaks the symbol covers its left end with a piece that begins before it, its right end with a piece
    that ends behind it, either, both or neither. What it gains over the path through the symbol adds up from the parts.

    Args:
        symbols: the user-defined symbols.
        scores: log probability of every normal piece.

    Raises:
        ValueError: some text exists in which the symbol would be broken; names a piece that does it.
    """
    for symbol in symbols:
        left, right = (
            {0: (0.0, "")},
            {len(symbol): (0.0, "")},
        )  # cut inside the symbol -> best gain there, by which piece
        for piece, score in scores.items():
            if symbol in piece:
                _refuse(symbol, piece)
            for cut in range(1, min(len(symbol), len(piece))):
                if piece.endswith(symbol[:cut]):
                    gain = score - _best(piece[:-cut], scores)
                    left[cut] = max(left.get(cut, (gain, piece)), (gain, piece))
                if piece.startswith(symbol[-cut:]):
                    gain = score - _best(piece[cut:], scores)
                    inside = len(symbol) - cut
                    right[inside] = max(right.get(inside, (gain, piece)), (gain, piece))
        for start, (left_gain, left_piece) in left.items():
            for stop, (right_gain, right_piece) in right.items():
                if start <= stop and left_gain + _best(symbol[start:stop], scores) + right_gain >= USER_SYMBOL_SCORE:
                    _refuse(symbol, left_piece or right_piece)


def _best(text: str, scores: Mapping[str, float]) -> float:
    """Score of the best segmentation; a character without a piece costs 10 more than the rarest piece."""
    unknown = min(scores.values()) - 10
    best = [0.0]
    for end in range(1, len(text) + 1):
        single = scores.get(text[end - 1], unknown)
        paths = [best[start] + scores[text[start:end]] for start in range(end - 1) if text[start:end] in scores]
        best.append(max([best[-1] + single, *paths]))
    return best[-1]


def _refuse(symbol: str, piece: str) -> None:
    raise DataError(
        f"user_defined_symbols: a unigram model would break {symbol!r} where the piece {piece!r} fits as well; "
        "use model_type bpe, or a symbol of rarer characters"
    )
