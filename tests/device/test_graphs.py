"""torch.compile gets whole functions: one graph for all layers of a decoder, one for any other model, nothing cut."""

from __future__ import annotations

import pytest

from tests.device.graphs import counted_graphs
from tests.device.task_step import prepare


@pytest.mark.parametrize("case", ["language", "sentences", "words", "digits"])
def test_a_compiled_task_is_one_graph_without_breaks(case, materials):
    """VQ and CLIP4STR are cut where a library decides by a value, and where captions are written."""
    with counted_graphs() as graphs:
        ready = prepare(case, materials, engine__compile=True)
        for _ in range(2):  # captured once
            ready.module(ready.batch).total.backward()
    assert (graphs.count, dict(graphs.breaks)) == (1, {}) and graphs.operators > 2
