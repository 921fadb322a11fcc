"""Dataclasses from YAML or JSON: names, types and bounds are checked at every depth before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from common.errors import InputError
from common.untrusted_files import read_json, read_yaml, typed

Config = TypeVar("Config")


class ModelConfigError(InputError, ValueError):
    """A model configuration that cannot be read, or that has an unknown, ill-typed or contradictory field."""


def elsewhere(path: str | Path) -> str:
    """Where else below configs/ files of this name lie, as the end of a message; "" where none does.

    Configurations are sorted by system and kind; YAML files of before that name them elsewhere.
    """
    found = sorted(Path("configs").rglob(Path(path).name)) if Path(path).suffix in (".yaml", ".yml") else []
    return f"; there is {' and '.join(map(str, found))}" if found else ""


def read_fields(path: Path) -> dict[str, Any]:
    """The mapping in a .json file or in a YAML file of any other name.

    Raises:
        FileNotFoundError: there is no such file.
        ModelConfigError: it does not hold a mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = (read_json if path.suffix == ".json" else read_yaml)(path, ModelConfigError)
    if not isinstance(content, dict):
        raise ModelConfigError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    if odd := [name for name in content if not isinstance(name, str)]:
        raise ModelConfigError(f"{path}: the field name {odd[0]!r} is no text")
    return content


def check_names(
    names: Iterable[str], valid: Collection[str], where: str, error: Callable[[str], Exception] = ModelConfigError
) -> None:
    """Raises `error` for the first name that is not valid, with the nearest one that is."""
    for name in names:
        if name not in valid:
            nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.0)[0]
            raise error(f"{where}: unknown field {name!r}; did you mean {nearest!r}?")


def load_dataclass(kind: type[Config], source: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The dataclass `kind` from a file of its fields.

    Args:
        kind: a dataclass; see `build_dataclass`.
        source: YAML or JSON.
        overrides: fields to replace or to add.

    Raises:
        ModelConfigError: not YAML, an unknown field, or a value that cannot be; names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model configuration{elsewhere(path)}")
    return build_dataclass(kind, {**read_fields(path), **(overrides or {})}, str(path))


def build_dataclass(
    kind: type[Config],
    content: Mapping[str, Any],
    where: str,
    error: Callable[[str], Exception] = ModelConfigError,
) -> Config:
    """The dataclass `kind` from plain values, as YAML gives them; dataclasses in it are built the same way.

    Args:
        kind: types and bounds (`Annotated[int, Ge(1)]`) of its fields are checked, then its `__post_init__` is asked,
            which raises ValueError for what fields say of each other.
        content: by field name.
        where: the file, for messages.
        error: made of a message.

    Raises:
        The `error`: a field is missing, unknown (the nearest is named, at every depth) or has a value that cannot be.
    """
    _check_fields(kind, content, where, error)
    return typed(kind, content, where, error)


def _check_fields(kind: Any, content: Any, where: str, error: Callable[[str], Exception]) -> None:
    """Names of the fields of `kind` and of the dataclasses in it, wherever `content` has mappings for them."""
    if not is_dataclass(kind):
        inner = get_args(kind)
        if isinstance(content, Mapping) and len(inner) == 2:
            for key, value in content.items():
                _check_fields(inner[1], value, f"{where}: {key}", error)
        for option in inner:
            if isinstance(content, list):
                for index, value in enumerate(content):
                    _check_fields(option, value, f"{where}: {index}", error)
            elif isinstance(content, Mapping) and is_dataclass(option):
                _check_fields(option, content, where, error)
        return
    if not isinstance(content, Mapping):
        return  # of the wrong type, which is said elsewhere
    own = {field.name: field for field in fields(kind) if field.init}
    check_names(content, own, where, error)
    required = [name for name, each in own.items() if each.default is MISSING and each.default_factory is MISSING]
    if missing := [name for name in required if name not in content]:
        raise error(f"{where}: missing fields: {', '.join(missing)}")
    kinds = get_type_hints(kind)
    for name, value in content.items():
        _check_fields(kinds[name], value, f"{where}: {name}", error)
