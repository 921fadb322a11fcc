"""`load_model_config`: a model's shape from YAML, a transformers directory or a mapping, checked field by field."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from arch.pangu_pi import PanguPiConfig
from common.config_file import ModelConfigError, check_names, elsewhere, read_fields
from common.tokenizer_files import CODE_FIELDS

# What LLaMA configurations also accept, besides the dataclass fields.
EXTRA_FIELDS = frozenset({"rope_theta", "rope_scaling", "attn_implementation"})
PLAIN_LLAMA = {"series_terms": 1, "shortcut_count": 0, "final_logit_softcapping": None, "qk_norm": False}
# Of a config.json: what names the class, the files or code (attention may be a kernel of the hub), and not the shape.
IDENTITY_FIELDS = frozenset(
    {"model_type", "architectures", "transformers_version", "_name_or_path", *CODE_FIELDS}
    | {"attn_implementation", "_attn_implementation", "kernel_config"}
)


def load_model_config(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> PanguPiConfig:
    """The model configuration in `source`, with the fields in `overrides` instead of its own.

    Fields that `source` leaves out follow from the others (heads of keys and values, the width of a head), and so
    they also follow an override.

    Args:
        source: a YAML file of `PanguPiConfig` fields (see `configs/pangu_pi/models/`); a transformers directory or its
            `config.json`, of model type `pangu_pi` or `llama` (which gives `series_terms=1, shortcut_count=0`); or a
            mapping of fields.
        overrides: fields to replace or to add; their names are always checked.

    Raises:
        FileNotFoundError: there is no such file, or the directory has no `config.json`.
        ModelConfigError: the source is not a mapping of fields, or a field is unknown (the nearest valid name is
            given), has the wrong type, or contradicts another.
    """
    if isinstance(source, Mapping):
        return _checked({**source, **(overrides or {})}, "model configuration")
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such model configuration (a YAML file or a transformers directory){elsewhere(path)}"
        )
    _check_names(overrides or {}, f"overrides of {path}")
    fields = read_fields(path)
    if path.suffix == ".json":
        return from_transformers(fields, str(path), overrides)
    return _checked({**fields, **(overrides or {})}, str(path))


def from_transformers(
    fields: Mapping[str, Any], where: str, overrides: Mapping[str, Any] | None = None
) -> PanguPiConfig:
    """The configuration in a transformers `config.json` of type `pangu_pi` or `llama`.

    Fields that the class does not know are kept as attributes, as transformers does: every publisher adds some.
    """
    if private := [name for name in fields if name.startswith("__")]:
        raise ModelConfigError(f"{where}: {private[0]!r} is no field of a model, and would replace part of the class")
    shape = {name: value for name, value in fields.items() if name not in IDENTITY_FIELDS}
    match fields.get("model_type"):
        case PanguPiConfig.model_type:
            return _build({**shape, **(overrides or {})}, where)
        case "llama":
            return _build({**shape, **PLAIN_LLAMA, **(overrides or {})}, where)
        case other:
            raise ModelConfigError(f"{where}: model_type is {other!r}; only 'pangu_pi' and 'llama' can be loaded")


def _checked(fields: dict[str, Any], where: str) -> PanguPiConfig:
    """A configuration from fields that a person wrote: unknown names are errors."""
    _check_names(fields, where)
    return _build(fields, where)


def _check_names(fields: Mapping[str, Any], where: str) -> None:
    check_names(fields, {field.name for field in dataclasses.fields(PanguPiConfig)} | EXTRA_FIELDS, where)


def _build(fields: dict[str, Any], where: str) -> PanguPiConfig:
    try:
        return PanguPiConfig(**fields)
    except StrictDataclassError as error:
        # "Validation error for field 'x':\n    TypeError: ..." -> the part that says what is wrong
        raise ModelConfigError(f"{where}: {str(error).splitlines()[-1].strip().partition(': ')[2]}") from None
    except ValueError as error:
        raise ModelConfigError(f"{where}: {error}") from None


__all__ = ["ModelConfigError", "from_transformers", "load_model_config"]
