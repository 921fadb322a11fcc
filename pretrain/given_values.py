"""What no field of a configuration can be, but jsonargparse lets through: refused before anything is made of it.

null where the type has no None        in a YAML file, and in the arguments of classes given by import path
something else where fields belong     `optimizer: [muon]` would leave all of its fields at their defaults
nan and infinities                     in the configuration's own fields; a class may have a use for them
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from pretrain.errors import ConfigurationError


def check_given(given: Namespace, types: Mapping[str, Any], finite: bool = True, where: str = "") -> None:
    """Looks at every field that was parsed, those of dataclasses and of classes given by import path included.

    Args:
        given: of a parser, before classes are made of it.
        types: annotations of the fields; what has none may be anything.
        finite: whether numbers must be finite.
        where: path of the fields, with a dot at its end.

    Raises:
        ConfigurationError: a field has a value that its type does not have.
    """
    for name, value in vars(given).items():
        kinds, path = _alternatives(types.get(name, Any)), where + name
        group = next((kind for kind in kinds if is_dataclass(kind)), None)
        if value is None:
            if Any not in kinds and NoneType not in kinds:
                names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
                raise ConfigurationError(f"{path} is null; it must be {names}, or left out for its default")
        elif isinstance(value, Namespace) and "class_path" not in value:
            check_given(value, get_type_hints(group) if group else {}, finite, f"{path}.")
        elif group is not None and set(kinds) <= {group, NoneType}:
            names = ", ".join(field.name for field in fields(group))
            raise ConfigurationError(f"{path} is {value!r}; it must be a mapping of its fields: {names}")
        elif finite and isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{path} is {value}; it must be a finite number")
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, Namespace) and "class_path" in each:
                check_given(each.get("init_args") or Namespace(), arguments_of(each.class_path), False, f"{path}.")


def arguments_of(class_path: str) -> dict[str, Any]:
    """Names and annotations of what a class given by import path takes, with what its bases take by `**`."""
    module, _, name = class_path.rpartition(".")
    found: dict[str, Any] = {}
    for base in getattr(importlib.import_module(module), name).__mro__:
        if (initialise := vars(base).get("__init__")) is None:
            continue
        parameters = inspect.signature(initialise).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != "self":
                found.setdefault(parameter.name, _annotation(initialise, parameter))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _annotation(function: Any, parameter: inspect.Parameter) -> Any:
    """What may be given; a default of None may."""
    try:
        kind = get_type_hints(function).get(parameter.name, Any)
    except (NameError, TypeError):  # it names what is imported for type checkers alone
        return Any
    return kind | None if parameter.default is None and kind is not Any else kind


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
