"""JSON and YAML files that may come from elsewhere: how much they may hold, and one kind of error for all mistakes.

A file is refused by its size before it is read, by its depth and (YAML) by its aliases before anything is built from
it, and by its types before a field is used. Whoever reads names the error of its room.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

Record = TypeVar("Record")
MakeError = Callable[[str], Exception]
"""The error of a message: a class, or a function that adds what to do."""

MAX_JSON_BYTES = 2**28
"""Of one file: a meta.json with a million shards or rejected documents has about as many."""
MAX_YAML_BYTES = 2**20
"""A configuration is written by a person, or by a program for one."""
MAX_DEPTH = 64
"""Mappings and lists inside each other."""
MAX_YAML_NODES = 100_000
"""With every alias counted as what it stands for: nine lines of aliases can stand for a thousand million nodes."""
MAX_SCALAR = 2**16
"""Characters of one YAML value: `1:1:1:...` is a number in base 60, which takes the square of its length to read."""
MAX_NAME = 255
"""Characters of a file name, as most file systems have it."""


def read_json(path: Path, error: MakeError, max_bytes: int = MAX_JSON_BYTES, finite: bool = True) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        error: raised, with the path in its message, where the file cannot be used.
        max_bytes: larger files are refused unread.
        finite: whether to refuse NaN and infinities.
    """
    return parse_json(read_text(path, error, max_bytes), str(path), error, finite)


def parse_json(text: str, where: str, error: MakeError, finite: bool = True) -> Any:
    """The value in JSON text, which messages call `where`; see `read_json`."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite) if finite else json.loads(text)
    except RecursionError:
        raise error(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as problem:
        raise error(f"{where}:{problem.lineno}: not JSON ({problem.msg}, column {problem.colno})") from None
    except ValueError as problem:  # digits beyond Python's limit, and what is refused below
        raise error(f"{where}: not JSON that can be used ({problem})") from None
    level, depth = list(_containers([value])), 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise error(f"{where}: nested deeper than {MAX_DEPTH} levels")
        level = [
            inner for outer in level for inner in _containers(outer.values() if isinstance(outer, dict) else outer)
        ]
    return value


def read_yaml(path: Path, error: MakeError) -> Any:
    """The value in a YAML file; see `read_json`."""
    return parse_yaml(read_text(path, error, MAX_YAML_BYTES), str(path), error)


def parse_yaml(text: str, where: str, error: MakeError) -> Any:
    """The value in YAML text: plain types only, and no more nodes than `MAX_YAML_NODES`, aliases written out."""
    import yaml

    check_yaml(text, where, error)
    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as problem:
        # A tag that does not fit its value ends in nearly any of these, inside PyYAML's constructors.
        raise error(f"{where}: not YAML: {_one_line(problem)}") from None


def check_yaml(text: str, where: str, error: MakeError) -> None:
    """Refuses YAML by size, depth and number of nodes, from its events alone: nothing is built."""
    import yaml

    if len(text) > MAX_YAML_BYTES:
        raise error(f"{where}: more than {MAX_YAML_BYTES:,} characters of YAML")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    for event in _events(text, where, error):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise error(f"{where}: *{event.anchor} is not defined before it, or stands for itself")
            count += sizes[event.anchor]
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_SCALAR:
                raise error(f"{where}: a value of more than {MAX_SCALAR:,} characters")
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - before
        if len(open_nodes) > MAX_DEPTH:
            raise error(f"{where}: nested deeper than {MAX_DEPTH} levels")
        if count > MAX_YAML_NODES:
            raise error(f"{where}: more than {MAX_YAML_NODES:,} nodes, its aliases written out")


def read_text(path: Path, error: MakeError, max_bytes: int) -> str:
    """The text of a UTF-8 file that is no larger than `max_bytes`."""
    content = read_bytes(path, error, max_bytes)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 at byte {problem.start}") from None


def read_bytes(path: Path, error: MakeError, max_bytes: int) -> bytes:
    """The bytes of a file that is no larger than `max_bytes`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem})") from None
    if len(content) > max_bytes:
        raise error(f"{path}: more than {max_bytes:,} bytes, which such a file never has")
    return content


def typed(kind: type[Record], content: Any, where: str, error: MakeError) -> Record:
    """`content`, as JSON gives it, as the dataclass (or other type) `kind`; no value is converted.

    Bounds are the field's own: `Annotated[int, Ge(0)]`. Fields that `kind` does not have are left out.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cast(Hashable, kind)).validate_json(json.dumps(content), strict=True)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        if first["type"] == "value_error":  # raised by a dataclass itself, in its own words
            place = f"{where}: {field}" if first["loc"] else where
            raise error(f"{place}: {first['ctx']['error']}") from None
        raise error(f"{where}: {field}: {first['msg']}, found {_shown(first['input'])}") from None


def is_plain_name(name: Any) -> bool:
    """Whether `name` names a file in a folder and cannot lead out of it, on any system."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME
        and name.isprintable()  # no NUL, no newline, no half of a surrogate pair
        and not set(name) & {"/", "\\", ":"}
        and name not in (".", "..")
    )


def is_inner_path(name: Any) -> bool:
    """Whether `name` is a path below a folder, of plain names: what `Path.relative_to` writes."""
    return isinstance(name, str) and all(is_plain_name(part) for part in name.split("/"))


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _loader() -> Any:
    """Builds plain types only; libyaml's where PyYAML has it, which is ten times as fast."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _events(text: str, where: str, error: MakeError) -> Iterator[Any]:
    import yaml

    try:
        yield from yaml.parse(text, Loader=_loader())
    except (yaml.YAMLError, UnicodeError) as problem:
        raise error(f"{where}: not YAML: {_one_line(problem)}") from None


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    return (value for value in values if isinstance(value, (dict, list)))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:300] or type(problem).__name__


__all__ = [
    "check_yaml",
    "is_inner_path",
    "is_plain_name",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "typed",
]
