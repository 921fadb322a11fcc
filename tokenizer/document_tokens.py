"""Which tokens enclose a document: bos and eos; of a tokenizer without bos, eos on both sides.

Qwen's tokenizers, for one, have no bos. eos then opens a document as well as it closes one, as <|endoftext|> does for
GPT-2: every token of the text is predicted from something, and lm-eval, which scores a text after bos or else after
eos, asks what was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def document_tokens(tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[int, int]:
    """Ids of the first and the last token of every document.

    Args:
        tokenizer: of any kind.
        where: its name, for the message.

    Raises:
        ValueError: it has no eos token.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            f"{where}: the tokenizer has no eos_token, with which every document ends; name one of its tokens in"
            ' tokenizer_config.json, for example "eos_token": "<|endoftext|>"'
        )
    return (eos if bos is None else bos), eos
