"""Turns a config dataclass into command-line options: one per field, with the field's docstring as its help."""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings
from yaml import YAMLError

from common.config_file import elsewhere
from common.untrusted_files import check_yaml

ALIKE = 0.35
"""Similarity, of 1, from which a name is worth suggesting."""


class Parser(ArgumentParser):
    """A parser that takes options by their full names: a misspelt one is refused, even where it begins a right one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **options)


def add_config_arguments(
    parser: ArgumentParser, config_class: type, config_file: bool = True, skip: Collection[str] = ()
) -> None:
    """Adds an option for every field, and `--config FILE.yaml`; list fields take several values after one name.

    Args:
        parser: of one command.
        config_class: a dataclass; the docstring under a field is its help.
        config_file: whether to add `--config`, where no field has that name.
        skip: fields that the command adds in its own way.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    bound_yaml()
    lists = {field.name: field for field in fields(config_class) if "list[" in str(field.type)}
    classes = [base for base in reversed(config_class.__mro__) if is_dataclass(base)]
    helps = {entry.arg_name: entry.description for base in classes for entry in parse_from_object(base).params}
    if config_file and all(field.name != "config" for field in fields(config_class)):
        parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    for name, field in lists.items():
        required = field.default is MISSING and field.default_factory is MISSING
        default = field.default_factory() if field.default_factory is not MISSING else None
        item = int if "int" in str(field.type) else str
        parser.add_argument(f"--{name}", nargs="+", type=item, required=required, default=default, help=helps[name])
    parser.add_class_arguments(config_class, skip={*lists, *skip})


def bound_yaml() -> None:
    """Makes every parser refuse YAML that is too large, too deep, or that grows beyond bounds by its aliases."""
    loader = get_loader("yaml")
    if loader is not _bounded_load:
        _unbounded.append(loader)
        set_loader("yaml", _bounded_load, (YAMLError,))


_unbounded: list[Callable[[str], Any]] = []


def _bounded_load(text: str) -> Any:
    check_yaml(text, "YAML", YAMLError)
    try:
        return _unbounded[-1](text)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise YAMLError(f"{type(error).__name__}: {error}") from None  # what a tag does to a value it does not fit


def make_config(parser: ArgumentParser, config_class: type, options: dict[str, Any]) -> Any:
    """Builds the config from parsed options; a value that the config refuses ends the program like a wrong argument."""
    try:
        return build_config(config_class, options)
    except ValueError as error:
        return parser.error(str(error))


def build_config(config_class: type, options: Mapping[str, Any]) -> Any:
    """A config from plain values, as a parser or JSON gives them: mappings become the dataclasses of their fields.

    Raises:
        ValueError: a value that the config, or a config in it, refuses.
    """
    kinds = get_type_hints(config_class)
    given = {field.name: options[field.name] for field in fields(config_class)}
    for name, value in given.items():
        inner = [kind for kind in (kinds[name], *get_args(kinds[name])) if is_dataclass(kind)]
        if inner and isinstance(value, Mapping):
            given[name] = build_config(inner[0], value)  # type: ignore[arg-type]
    return config_class(**given)


def one_spelling(words: Sequence[str], config_class: type | None = None) -> list[str]:
    """A command line with `--vocab-size` written `--vocab_size`, as fields are; after the name of a list of numbers,
    `[1, 2]` becomes words of their own."""
    kinds = {f"--{field.name}": str(field.type) for field in fields(config_class)} if config_class else {}
    meant: list[str] = []
    option = ""
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            option = f"--{option[2:].replace('-', '_')}"
            meant.append(option + equals + value)
        elif "list[int]" in kinds.get(option, "") and re.fullmatch(r"\[[-\d,\s]+\]", word):
            meant += re.findall(r"-?\d+", word)
        else:
            meant.append(word)
    return meant


def explain(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message as one line; an option that there is not comes with the nearest valid name instead."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", message).split())
    unknown = unknown_field(text)
    if unknown is None:
        absent = re.search(r"File does not exist: '([^']+)'", text)
        return text + (elsewhere(absent.group(1)) if absent else "")
    names = [action.dest for action in parser._actions if action.dest not in ("help", "print_shtab")]
    return f"unknown field {unknown!r}; {what_is_meant(unknown, names)}"


def unknown_field(text: str) -> str | None:
    """The field that jsonargparse does not know, if that is what its message is about."""
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        return f"{found.group(1)}.{found.group(2)}"
    found = re.search(r"Option '([\w.]+)' is not accepted", text) or re.search(
        r"[Uu]nrecognized arguments: --([\w.]+)", text
    )
    return found.group(1) if found else None


def what_is_meant(unknown: str, names: Sequence[str]) -> str:
    """The field with the initials of `unknown` (lr: learning_rate), or most like it, by full path or by last name, as
    the end of a message; where none is like it, all of them.

    The group that `unknown` was looked for in is none.
    """
    group, _, leaf = unknown.rpartition(".")
    initials = ".".join(part for part in (group, "".join(word[0] for word in leaf.split("_") if word)) if part)
    if initials in names and "_" in leaf:
        return f"did you mean {initials!r}?"

    def similarity(field: str) -> float:
        whole = difflib.SequenceMatcher(None, unknown, field).ratio()
        leaves = difflib.SequenceMatcher(None, unknown.rsplit(".", 1)[-1], field.rsplit(".", 1)[-1]).ratio()
        return max(whole, 0.9 * leaves)

    nearest = max((field for field in names if not unknown.startswith(f"{field}.")), key=similarity)
    return f"did you mean {nearest!r}?" if similarity(nearest) > ALIKE else f"known are {', '.join(names)}"
