"""ROUGE of one generated summary against its reference, for English words and for Chinese characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

METRICS = ["rouge1", "rouge2", "rougeL"]


class CharacterTokenizer(Tokenizer):
    """One token per CJK character or per run of ASCII letters and digits; spaces and punctuation separate."""

    def tokenize(self, text: str) -> list[str]:
        spaced = "".join(c if c.isascii() and c.isalnum() else f" {c} " if c.isalnum() else " " for c in text.lower())
        return spaced.split()


def first_line(text: str) -> str:
    """OpenCompass ``Xsum_postprocess``: what the model wrote up to its first line break."""
    return text.strip().split("\n")[0].strip()


def headline(text: str) -> str:
    """OpenCompass ``lcsts_postprocess``: the first line without list marks and surrounding quotes."""
    line = first_line(text)
    for mark in ("1. ", "- "):
        line = line.replace(mark, "") if line.startswith(mark) else line
    return line.strip("“，。！”")


def scores(prediction: str, reference: str, tokenizer: Tokenizer) -> dict[str, float]:
    """F-measures in [0, 1]."""
    scored = RougeScorer(METRICS, tokenizer=tokenizer).score(target=reference, prediction=prediction)
    return {name: scored[name].fmeasure for name in METRICS}


def _results(
    clean: Callable[[str], str], tokenizer: Tokenizer, doc: dict[str, Any], results: list[str]
) -> dict[str, float]:
    return scores(clean(results[0]), doc["summary"], tokenizer)


def xsum_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's ``process_results`` for XSum: words, stemmed as OpenCompass's evaluator leaves them (not at all)."""
    return _results(first_line, DefaultTokenizer(use_stemmer=False), doc, results)


def lcsts_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's ``process_results`` for LCSTS: characters."""
    return _results(headline, CharacterTokenizer(), doc, results)
