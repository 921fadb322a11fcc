"""Command line and YAML into a TrainConfig; every mistake is one line that names the field and the nearest valid one.

Parsing builds the task and the hooks (their constructors check their own arguments and allocate nothing), so that a
mistyped field fails within seconds, before a process group or a tensor exists.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from common.atomic_files import write_whole
from common.command_line import Parser, bound_yaml
from data_pipeline.identity import explain_mismatch
from pretrain.config import TrainConfig
from pretrain.errors import ConfigurationError
from pretrain.given_values import arguments_of, check_given

TRAINING = "Trains one configuration; start it with `deepspeed`, `torchrun` or plain `python`."
Options = TypeVar("Options")


def build_parser(prog: str = "train.py", description: str = TRAINING) -> ArgumentParser:
    """The parser of `pretrain/train.py`, and of commands that read the same configuration and more."""
    bound_yaml()
    parser = Parser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML of the fields below; later arguments override it")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the deepspeed launcher; not used")
    parser.add_class_arguments(TrainConfig)
    return parser


def parse(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, str]:
    """Reads the command line; returns the configuration and its complete YAML.

    Raises:
        ConfigurationError: unknown or ill-typed field, missing file, or a value that a field refuses.
    """
    config, text, _ = parse_with(build_parser(), arguments, lambda: None)
    return config, text


def parse_with(
    parser: ArgumentParser, arguments: Sequence[str] | None, extra: Callable[..., Options]
) -> tuple[TrainConfig, str, Options]:
    """The same for a parser that also has the arguments of `extra`, which are no part of the configuration.

    Args:
        parser: of `build_parser`, with the arguments of `extra` added.
        arguments: the command line; None takes the program's.
        extra: a dataclass of further options.

    Returns:
        The configuration, its complete YAML, and an `extra`.
    """
    own = set(inspect.signature(extra).parameters)
    outside = {"config", "local_rank", *own}
    try:
        namespace = parser.parse_args(arguments)
        check_given(namespace, get_type_hints(TrainConfig))
        instantiated = vars(parser.instantiate_classes(_with_variables(namespace)))
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        message = explain(str(error), parser)
        where = f"{', '.join(_config_files(arguments))}: " if "parsing config" in message else ""
        raise ConfigurationError(where + message) from error
    try:
        config = TrainConfig(**{name: value for name, value in instantiated.items() if name not in outside})
        options = extra(**{name: instantiated[name] for name in own})
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    except TypeError as error:  # a null where a number is needed passes the parser
        raise ConfigurationError(f"a field has no value, or one of another type than --help says: {error}") from error
    return config, _dump(parser, namespace, outside), options


def _config_files(arguments: Sequence[str] | None) -> list[str]:
    """The files that a command line names with --config."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    after = [following for word, following in pairwise(words) if word == "--config"]
    return after + [word.partition("=")[2] for word in words if word.startswith("--config=")]


def _with_variables(value: Any) -> Any:
    """The same with `${NAME}` in every text replaced by that environment variable, which may differ between hosts.

    Raises:
        ConfigurationError: the variable is not set here.
    """
    if isinstance(value, Namespace):
        return Namespace({name: _with_variables(item) for name, item in vars(value).items()})
    if isinstance(value, dict):
        return {name: _with_variables(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_variables(item) for item in value)
    if not isinstance(value, str):
        return value
    names = re.findall(r"\$\{(\w+)\}", value)
    if absent := [name for name in names if name not in os.environ]:
        raise ConfigurationError(f"{value}: the variable {absent[0]} is not set on host {socket.gethostname()}")
    return re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match.group(1)], value)


def _dump(parser: ArgumentParser, namespace: Namespace, outside: set[str]) -> str:
    namespace = namespace.clone()
    for name in outside:
        namespace.pop(name, None)
    return parser.dump(namespace, skip_validation=True)


def explain(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message as one line; an unknown field comes with the nearest valid name instead."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", message).split())
    unknown = _unknown_field(text)
    if unknown is None:
        return text
    owner = re.search(r"class_path '([\w.]+)'", text)
    fields = _class_fields(owner.group(1)) if owner else [a.dest for a in parser._actions if a.dest != "help"]
    where = f" of {owner.group(1)}" if owner else ""
    return f"unknown field {unknown!r}{where}; did you mean {nearest(unknown, fields)!r}?"


def nearest(unknown: str, fields: Sequence[str]) -> str:
    """The field with the initials of `unknown` (lr: learning_rate), or most like it, by full path or by last name.

    The group that `unknown` was looked for in is none.
    """
    group, _, leaf = unknown.rpartition(".")
    initials = ".".join(part for part in (group, "".join(word[0] for word in leaf.split("_") if word)) if part)
    if initials in fields and "_" in leaf:
        return initials

    def similarity(field: str) -> float:
        whole = difflib.SequenceMatcher(None, unknown, field).ratio()
        leaves = difflib.SequenceMatcher(None, unknown.rsplit(".", 1)[-1], field.rsplit(".", 1)[-1]).ratio()
        return max(whole, 0.9 * leaves)

    return max((field for field in fields if not unknown.startswith(f"{field}.")), key=similarity)


def _class_fields(class_path: str) -> list[str]:
    """Argument names of a class given by import path, those of arguments that are dataclasses included."""
    arguments = arguments_of(class_path)
    nested = [
        f"{argument}.{field.name}"
        for argument, kind in arguments.items()
        for option in (kind, *get_args(kind))
        if is_dataclass(option)
        for field in dataclass_fields(option)
    ]
    return [*arguments, *nested]


def _unknown_field(text: str) -> str | None:
    """The field that jsonargparse does not know, if that is what the message is about."""
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        return f"{found.group(1)}.{found.group(2)}"
    found = re.search(r"Option '([\w.]+)' is not accepted", text) or re.search(
        r"[Uu]nrecognized arguments: --([\w.]+)", text
    )
    return found.group(1) if found else None


def changed_settings(directory: Path, text: str) -> str:
    """What the run in `directory` was last started with and is not now, a line per field; "" where nothing differs.

    A resume takes the new values without a word otherwise: data and model are compared, a learning rate is not.
    """
    file = directory / "config.yaml"
    try:
        then, now = yaml.safe_load(file.read_text(encoding="utf-8")), yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return ""  # no start before this one, or one that was cut off in writing
    return explain_mismatch(then, now) if isinstance(then, dict) else ""


def write_config(directory: Path, text: str) -> None:
    """Stores the complete configuration of a run."""
    write_whole(directory / "config.yaml", text)
