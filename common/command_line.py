"""Turns a config dataclass into command-line options: one per field, with the field's docstring as its help."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings
from yaml import YAMLError

from common.untrusted_files import check_yaml


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
        config_file: whether to add `--config`.
        skip: fields that the command adds in its own way.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    bound_yaml()
    lists = {field.name: field for field in fields(config_class) if "list[" in str(field.type)}
    classes = [base for base in reversed(config_class.__mro__) if is_dataclass(base)]
    helps = {entry.arg_name: entry.description for base in classes for entry in parse_from_object(base).params}
    if config_file:
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


def end_interrupted(command: str) -> int:
    """Says that Ctrl-C ended a command, and returns its exit code.

    What destructors raise from here on is not shown: libraries cut off while starting leave half-made objects.
    """
    sys.unraisablehook = lambda _: None
    print(f"{command}: interrupted", file=sys.stderr)
    return 130


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
