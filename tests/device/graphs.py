"""How many graphs torch.compile makes of a task's forward pass, and where it breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters


@dataclass
class Graphs:
    """What was captured."""

    count: int = 0
    """Graphs, each time that one was captured anew."""
    operators: int = 0
    """Calls in all of them."""
    breaks: Counter[str] = field(default_factory=Counter)
    """Why a function was cut in two."""


@contextmanager
def counted_graphs() -> Iterator[Graphs]:
    """Counts what `torch.compile` captures in the body of a `with`; the graphs run as they are, without generated code.

    What is captured does not depend on the device, so this needs none.
    """
    graphs, compile_ = Graphs(), torch.compile
    counter = CompileCounterWithBackend("eager")

    def counting(model: Any = None, **options: Any) -> Any:
        return compile_(model, **{**options, "backend": counter})

    torch._dynamo.reset()
    counters.clear()
    torch.compile = counting  # the product names no backend
    try:
        yield graphs
    finally:
        torch.compile = compile_
        graphs.count, graphs.operators = counter.frame_count, counter.op_count
        graphs.breaks = Counter(counters["graph_break"])
        torch._dynamo.reset()
