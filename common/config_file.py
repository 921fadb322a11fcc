"""Fields of a model's configuration, from YAML or JSON, with names checked: what every kind of model shares."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError
from common.untrusted_files import read_json, read_yaml

Config = TypeVar("Config")


class ModelConfigError(InputError, ValueError):
    """A model configuration that cannot be read, or that has an unknown, ill-typed or contradictory field."""


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


def check_names(names: Iterable[str], valid: Collection[str], where: str) -> None:
    """Raises ModelConfigError for the first name that is not valid, with the nearest one that is."""
    for name in names:
        if name not in valid:
            nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.0)[0]
            raise ModelConfigError(f"{where}: unknown field {name!r}; did you mean {nearest!r}?")


def load_dataclass(kind: type[Config], source: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The dataclass `kind`, which checks its own values, from a file of its fields.

    Args:
        kind: a dataclass whose __post_init__ raises ModelConfigError.
        source: YAML or JSON.
        overrides: fields to replace or to add.

    Raises:
        ModelConfigError: not YAML, an unknown field, or a value that cannot be; names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model configuration")
    content = {**read_fields(path), **(overrides or {})}
    check_names(content, [field.name for field in fields(kind)], str(path))  # type: ignore[arg-type]
    try:
        return kind(**content)
    except ModelConfigError as error:
        raise ModelConfigError(f"{path}: {error}") from None
