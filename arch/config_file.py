"""Fields of a model's configuration, from YAML or JSON, with names checked: what every kind of model shares."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml


class ModelConfigError(ValueError):
    """A model configuration that cannot be read, or that has an unknown, ill-typed or contradictory field."""


def read_fields(path: Path) -> dict[str, Any]:
    """The mapping in a .json file or in a YAML file of any other name.

    Raises:
        FileNotFoundError: there is no such file.
        ModelConfigError: it does not hold a mapping.
    """
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if kind == "JSON" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelConfigError(f"{path}: not {kind}: {error}") from None
    if not isinstance(fields, dict):
        raise ModelConfigError(f"{path}: expected a mapping of fields, found {type(fields).__name__}")
    return fields


def check_names(names: Iterable[str], valid: Collection[str], where: str) -> None:
    """Raises ModelConfigError for the first name that is not valid, with the nearest one that is."""
    for name in names:
        if name not in valid:
            nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.0)[0]
            raise ModelConfigError(f"{where}: unknown field {name!r}; did you mean {nearest!r}?")
