"""Command line and YAML into a TrainConfig; every mistake is one line that names the field and the nearest valid one.

Parsing builds the task and the hooks (their constructors check their own arguments and allocate nothing), so that a
mistyped field fails within seconds, before a process group or a tensor exists.
"""

from __future__ import annotations

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

from common import command_line
from common.atomic_files import write_whole
from common.command_line import Parser, bound_yaml, one_spelling
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
        namespace = parser.parse_args(one_spelling(sys.argv[1:] if arguments is None else arguments))
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


def run_with(
    name: str, words: Sequence[str], extra: type[Options], run: Callable[[TrainConfig, str, Options], str]
) -> str:
    """Reads the command line of `python -m pretrain NAME`, runs it and returns what it says.

    Raises:
        ConfigurationError: as `parse` does.
    """
    parser = build_parser(f"pretrain {name}", extra.__doc__ or "")
    parser.add_class_arguments(extra)
    return run(*parse_with(parser, words, extra))


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
    """jsonargparse's message as one line; an unknown field, a task's too, comes with the nearest valid name."""
    text = command_line.explain(message, parser)
    owner, unknown = re.search(r"class_path '([\w.]+)'", message), command_line.unknown_field(message)
    if owner is None or unknown is None:
        return text
    meant = command_line.what_is_meant(unknown, _class_fields(owner.group(1)))
    return f"unknown field {unknown!r} of {owner.group(1)}; {meant}"


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
