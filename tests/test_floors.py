"""Who may import whom: rooms go one way, the sub-packages of a room form a DAG, and file formats have one reader."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ["common", "arch", "tokenizer", "data_pipeline", "pretrain", "eval"]
"""A room imports those before it, never those after it."""

MAY_IMPORT = {
    "arch/clip4str": {"arch/pangu_pi", "arch/parseq"},
    "arch/delvm": {"arch/pangu_pi"},
    "arch/surgery": {"arch/pangu_pi"},
    "data_pipeline/demo": {"data_pipeline/words"},
    "data_pipeline/pairs": {"data_pipeline/images"},
    "data_pipeline/shards": {"data_pipeline/pairs"},
    "eval/grid": {"eval/report", "eval/words"},
    "eval/probes": {"eval/language", "eval/report"},
    "eval/prompting": {"eval/grid", "eval/probes", "eval/report"},
    "eval/studies": {"eval/grid", "eval/language", "eval/probes", "eval/prompting", "eval/report"},
    "eval/words": {"eval/probes", "eval/report"},
    "pretrain/checkpoints": {"pretrain/optimizers", "pretrain/ranks"},
    "pretrain/optimizers": {"pretrain/ranks"},
    "pretrain/planning": {
        "pretrain/losses",
        "pretrain/monitoring",
        "pretrain/optimizers",
        "pretrain/quickstarts",
        "pretrain/tasks",
    },
    "pretrain/ranks": {"pretrain/monitoring"},
    "pretrain/rounds": {"pretrain/checkpoints", "pretrain/monitoring", "pretrain/ranks"},
    "pretrain/tasks": {"pretrain/losses"},
    "tokenizer/compression": {"tokenizer/inputs"},
    "tokenizer/visual": {"tokenizer/inputs"},
}
"""Sub-package -> sub-packages of its own room that it may import. Files beside them in the room count as none."""


def modules() -> dict[str, Path]:
    """Every module of the rooms by its dotted name."""
    files = (path for room in FLOORS for path in (ROOT / room).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a module imports, at the top, in a function or for its types."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known or base in known:
                    yield inner if inner in known else base


def folder(path: Path) -> str:
    """`room/sub-package` of a file; a file directly in a room stands for itself: it may lie anywhere between."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2])


def edges() -> dict[tuple[str, str], str]:
    """(importing folder, imported folder) -> an example."""
    known = modules()
    found: dict[tuple[str, str], str] = {}
    for name, path in known.items():
        for target in imported(name, path, known):
            pair = (folder(path), folder(known[target]))
            if pair[0] != pair[1]:
                found.setdefault(pair, f"{path.relative_to(ROOT)} imports {target}")
    return found


EDGES = edges()


def test_rooms_import_one_way():
    climbing = [
        example
        for (above, below), example in EDGES.items()
        if FLOORS.index(above.split("/")[0]) < FLOORS.index(below.split("/")[0])
    ]
    assert climbing == []


def test_sub_packages_form_a_dag():
    """Files that lie in a room itself are nodes of their own; every circle would go through two folders at least."""
    graph: dict[str, set[str]] = {}
    for above, below in EDGES:
        graph.setdefault(above, set()).add(below)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
        steps = [EDGES[pair] for pair in zip(circle[1:], circle, strict=False) if pair in EDGES]
        pytest.fail("\n".join(["a circle of imports:", *steps]))


def test_the_table_of_sub_packages_holds():
    """So that a new dependency between two folders of a room is a decision, written here, and not an accident."""
    actual: dict[str, set[str]] = {}
    for above, below in EDGES:
        if above.split("/")[0] == below.split("/")[0] and not above.endswith(".py") and not below.endswith(".py"):
            actual.setdefault(above, set()).add(below)
    assert actual == MAY_IMPORT


def test_at_most_two_levels_and_a_map_in_every_folder():
    for path in modules().values():
        assert len(path.relative_to(ROOT).parts) <= 3 or "tasks" in path.parts, path
    for init in (path for path in modules().values() if path.name == "__init__.py"):
        documentation = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))
        assert documentation, f"{init} says nothing of its folder"
        others = {path.name for path in init.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
        named = {name for name in others if re.search(rf"\b{re.escape(name.removesuffix('.py'))}\b", documentation)}
        assert named == others or init.parent.name in ("studies", "tasks", "surgery", "pangu_pi"), (
            init,
            others - named,
        )


def test_one_reader_of_meta_json():
    """`common/token_shards.py` is the format of shard directories; a second reader would be a second format.

    The meta.json of a checkpoint is another file.
    """
    opening = re.compile(r"[\"']meta\.json[\"']")
    found = [
        str(path.relative_to(ROOT))
        for path in modules().values()
        if opening.search(path.read_text(encoding="utf-8")) and path.parent.name not in ("common", "checkpoints")
    ]
    assert found == []
