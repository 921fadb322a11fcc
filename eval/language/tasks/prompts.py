"""Prompt functions that do not fit a template line."""

from __future__ import annotations

from typing import Any


def c3_choices(doc: dict[str, Any]) -> list[str]:
    """The passage, question and one answer each, as one text (2 to 4 of them)."""
    return [f"文章：{doc['content']}\n问题：{doc['question']}\n答案：{choice}" for choice in doc["choices"]]
