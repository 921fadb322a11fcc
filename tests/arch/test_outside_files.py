"""Bounds of JSON and YAML, and names that stay in their folder."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import yaml
from annotated_types import Ge

from common.untrusted_files import is_inner_path, is_plain_name, parse_json, parse_yaml, read_json, typed
from pretrain.command_line import parse
from pretrain.errors import ConfigurationError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nine lines that stand for four hundred million texts."""
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "f: more than 100,000 nodes, its aliases written out"),
        (MERGES, "f: more than 100,000 nodes"),
        ("&a [*a]", r"f: \*a is not defined before it, or stands for itself"),
        ("[" * 100_000, "f: (nested deeper than 64 levels|not YAML: .* maximum nesting depth)"),
        ("{a: " * 65 + "1" + "}" * 65, "f: nested deeper than 64 levels"),
        ("x" * (2**20 + 1), "f: more than 1,048,576 characters of YAML"),
        ("1:1" * 40_000, "f: a value of more than 65,536 characters"),
        ("!!python/object/apply:os.system ['true']", "f: not YAML: could not determine a constructor"),
        ("!!int x", "f: not YAML: invalid literal for int"),
        ("a: [", "f: not YAML: .* line 2"),
    ],
)
def test_yaml_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(text, "f", ValueError)


def test_ordinary_anchors_and_merges_work():
    text = "base: &b {lr: 1, wd: 2}\nmine: {<<: *b, lr: 3}\nboth: [*b, *b]\n"
    assert parse_yaml(text, "f", ValueError) == yaml.safe_load(text)


def test_a_run_is_not_configured_by_a_bomb(tmp_path):
    (tmp_path / "a.yaml").write_text(LAUGHS)
    with pytest.raises(ConfigurationError, match=r"a\.yaml: .*more than 100,000 nodes"):
        parse(["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("NaN", "NaN is no JSON number"),
        ("1e999", "1e999 is too large a number"),
        ("9" * 5000, "f: not JSON that can be used"),
        ('{"a":\n}', "f:2: not JSON"),
    ],
)
def test_json_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text, "f", ValueError)


def test_a_file_is_refused_by_its_size(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert read_json(tmp_path / "a.json", ValueError, 9) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"a\.json: more than 8 bytes"):
        read_json(tmp_path / "a.json", ValueError, 8)


def test_only_the_type_that_is_declared_is_taken():
    @dataclass(frozen=True)
    class Record:
        size: Annotated[int, Ge(1)]

    assert typed(Record, {"size": 1, "more": 2}, "f", ValueError) == Record(1)
    for wrong in ({"size": True}, {"size": "1"}, {"size": 1.0}, {"size": 0}, {}, [], None):
        with pytest.raises(ValueError, match=r"^f: (size|content): "):
            typed(Record, wrong, "f", ValueError)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "a\0", "a\n", "\ud800", "x" * 300, 3, None]
)
def test_names_that_could_lead_elsewhere_are_none(name):
    assert not is_plain_name(name)


def test_names_of_files_in_the_folder_are_taken():
    assert is_plain_name("00000.ds") and is_plain_name("文.json") and is_inner_path("engine/a.pt")
    assert not any(map(is_inner_path, ("../a", "/a", "a//b", "a/../b", "", None)))
