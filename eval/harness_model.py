"""lm-eval's ``HFLM`` around a model in memory, with three differences.

    whole texts        only a text's own tokens are scored, after one bos. lm-eval asks the tokenizer for the ids and
                       puts bos before them; where the tokenizer has put one there too, it would score that as well.
    choices too long   for the model's positions are scored in windows, as lm-eval does with whole texts; it would end
                       the whole evaluation. An empty choice scores 0.
    batch size "auto"  is lm-eval's search on an accelerator. On a CPU, where too large a batch ends the process
                       instead of raising an error, it is what fits `CPU_LOGITS`.

The tokenizer of an export adds nothing of its own accord, so that plain ``lm_eval --model hf`` gives these numbers too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from common.errors import DataError

CPU_LOGITS = 2**28
"""Logits of one batch that "auto" allows on a CPU: 1 GiB in float32."""
MAX_BATCH = 64
"""lm-eval's own bound of "auto"."""
SHOWN = 60
"""Characters of an example."""

Request = tuple[Any, list[int], list[int]]
"""lm-eval's: ((context, continuation) or None, ids of the context, ids of the continuation)."""


class HarnessModel(HFLM):
    """A causal LM in memory as lm-eval asks it.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        batch_size: sequences per forward pass, or lm-eval's ``auto`` and ``auto:N``.

    Raises:
        ValueError: the tokenizer has neither a bos nor an eos token, one of which stands before every text.
    """

    add_bos_token: bool | None

    def __init__(self, model: Any, tokenizer: Any, batch_size: int | str = 1) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        if self.prefix_token_id is None:
            raise DataError(
                "the tokenizer has neither a bos nor an eos token, one of which stands before every scored text; name "
                "it in tokenizer_config.json (bos_token)"
            )
        if self.batch_size == "auto" and self.device.type == "cpu":
            fitting = CPU_LOGITS // (self.max_length * self.vocab_size)
            self.batch_size_per_gpu = max(1, min(MAX_BATCH, fitting))
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, of their own tokens alone."""
        automatic, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.add_bos_token = automatic

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        pieces = [(owner, piece) for owner, request in enumerate(requests) for piece in self._pieces(request)]
        answers = super()._loglikelihood_tokens(
            [piece for _, piece in pieces],
            # A batch of windows of whole texts has its own size, and would have a bar of its own.
            disable_tqdm=disable_tqdm or override_bs is not None,
            override_bs=override_bs,
        )
        totals = [(0.0, True)] * len(requests)
        for (owner, _), (score, greedy) in zip(pieces, answers, strict=True):
            totals[owner] = (totals[owner][0] + score, totals[owner][1] and greedy)
        return totals

    def _pieces(self, request: Request) -> Iterator[Request]:
        """The request itself, or what of it fits the model's positions."""
        key, context, continuation = request
        if not continuation:
            self._count("are empty and score 0", key)
        elif len(continuation) <= self.max_length:
            if len(context) + len(continuation) > self.max_length + 1:
                self._count("lost the beginning of their context", key)
            yield request
        else:
            self._count("are longer than that themselves and were scored in windows", key)
            windows = get_rolling_token_windows(continuation, context[-1], self.max_length, context_len=1)
            for before, window in map(make_disjoint_window, windows):
                yield (None, before, window)

    def _count(self, what: str, key: Any) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1
        if what not in self._examples and key is not None:
            context, continuation = key
            self._examples[what] = f"{_short(continuation)} after {_short(context, end=True)}"

    def notes(self) -> list[str]:
        """What was done to requests that do not fit the model, with the number of them and an example."""
        return [
            f"{count:,} choices {what} (the model has {self.max_length:,} positions), such as "
            f"{self._examples.get(what, 'a part of a text')}"
            for what, count in self._counts.items()
        ]


def as_exported(tokenizer: Any) -> Any:
    """A tokenizer in the form that its export has: it adds no control tokens unless they are asked for."""
    if not tokenizer.is_fast or not tokenizer.num_special_tokens_to_add():
        return tokenizer
    from tokenizers.processors import TemplateProcessing

    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return plain


def _short(text: str, end: bool = False) -> str:
    if len(text) <= SHOWN:
        return repr(text)
    return repr(f"...{text[-SHOWN:]}" if end else f"{text[:SHOWN]}...")
