"""Documentation that names code names code that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "methods").glob("*.md"))]
CODE = (
    "arch",
    "benchmarks",
    "common",
    "configs",
    "data_pipeline",
    "eval",
    "examples",
    "pretrain",
    "tests",
    "tokenizer",
)


def references(page: Path) -> list[tuple[str, str | None]]:
    """`path/file.py` and `path/file.py:name` in backticks."""
    found = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", page.read_text(encoding="utf-8"))
    return [(path, name or None) for path, name in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_place_exists(page):
    for path, name in references(page):
        assert (ROOT / path).is_file(), f"{page.name} names {path}, which does not exist"
        if name is not None:
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(?:class|def) {name}\b", source, re.MULTILINE), f"{page.name}: no {name} in {path}"


def test_the_walk_through_names_each_room():
    rooms = {path.split("/")[0] for path, _ in references(ROOT / "docs" / "life_of_a_batch.md")}
    assert {"arch", "tokenizer", "data_pipeline", "pretrain", "eval"} <= rooms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_work(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_code_that_names_a_method_names_a_page_and_a_heading():
    """`docs/methods/delvm.md: visual tokenizers` in a docstring or comment, also across a line break."""
    headings = {
        page.name: re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8").lower(), re.MULTILINE)
        for page in (ROOT / "docs" / "methods").glob("*.md")
    }
    files = [path for room in CODE for kind in ("*.py", "*.yaml") for path in sorted((ROOT / room).rglob(kind))]
    for path in files:
        text = re.sub(r"\s*\n[\s#]*", " ", path.read_text(encoding="utf-8"))
        for page, rest in re.findall(r"docs/methods/(\w+\.md)(?=: (.{40}))?", text):
            assert page in headings, f"{path} names docs/methods/{page}, which does not exist"
            known = headings[page]
            assert not rest or any(rest.lower().startswith(heading) for heading in known), (
                f"{path}: no {rest!r} in {page}"
            )
