"""Milliseconds per generated token, several models side by side.

Batch 1, KV cache, greedy, a fixed number of tokens. The models take turns (A B C A B C ...), so that whatever else the
machine does hits all of them alike; the median of the rounds is the figure and the quartiles its spread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch
from tqdm import trange


@dataclass(frozen=True)
class Latency:
    """Milliseconds per token of one model."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""


@torch.no_grad()
def milliseconds_per_token(model: Any, prompt: int, tokens: int) -> float:
    """One timed greedy decode of ``tokens`` tokens after a prompt of ``prompt`` tokens; the prefill is not counted."""
    ids_1S = torch.arange(prompt, device=model.device).unsqueeze(0) % model.config.vocab_size
    output = model(input_ids=ids_1S, use_cache=True, logits_to_keep=1)
    _synchronise(model)
    start = time.perf_counter()
    for _ in range(tokens):
        next_11 = output.logits[:, -1:].argmax(dim=-1)
        output = model(input_ids=next_11, past_key_values=output.past_key_values, use_cache=True)
    _synchronise(model)
    return (time.perf_counter() - start) / tokens * 1e3


def compare_latency(
    models: Mapping[str, Any], rounds: int = 9, prompt: int = 64, tokens: int = 64
) -> dict[str, Latency]:
    """Figures of every model, from interleaved rounds after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for measured in trange(rounds + 1, desc="latency", unit="round"):
        for name, model in models.items():
            value = milliseconds_per_token(model, prompt, tokens)
            if measured:
                times[name].append(value)
    figures = {}
    for name, values in times.items():
        lower, median, upper = quantiles(values, n=4)
        figures[name] = Latency(median, lower, upper)
    return figures


def _synchronise(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
