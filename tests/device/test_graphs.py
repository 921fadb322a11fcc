"""torch.compile gets whole blocks: one graph for all that are of one kind, and nothing cut."""

from __future__ import annotations

import pytest

from tests.device.graphs import counted_graphs
from tests.device.task_step import prepare

KINDS = {"language": 1, "sentences": 1, "words": 2, "digits": 1}
"""Kinds of blocks: a recogniser has an encoder and a decoder."""


@pytest.mark.parametrize(
    ("case", "kinds"), [("language", 1), ("sentences", 1), ("words", 2), ("digits", 1), ("images", 2)]
)
def test_a_compiled_task_is_one_graph_for_each_kind_of_block_without_breaks(case, kinds, materials):
    """CLIP4STR has a dozen kinds, by encoder and by what is frozen; test_compilation.py has it too."""
    with counted_graphs() as graphs:
        ready = prepare(case, materials, engine__compile=True)
        for _ in range(2):  # captured once
            ready.module(ready.batch).total.backward()
    assert (graphs.count, dict(graphs.breaks)) == (kinds, {}) and graphs.operators > 2
