"""What `python -m arch inspect | export | inherit` take and do; torch is imported when one of them runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arch.surgery.options import InheritConfig


@dataclass(frozen=True)
class InspectOptions:
    """A shape whose cost is asked for."""

    config: Path
    """A YAML of model fields (configs/*/models/*.yaml) or a transformers directory."""
    sequence_length: int = 2048
    """Tokens per sequence, which the cost of attention scores depends on."""


@dataclass(frozen=True)
class ExportOptions:
    """A model and where it goes."""

    model: str
    """A run, a checkpoint, an export, a plain LLaMA directory, a GGUF file, or the id of a hub model."""
    out: Path
    """The directory to write."""
    tokenizer: Path | None = None
    """A tokenizer directory to put beside the weights; by default the one found in the model's directory."""
    dtype: str = "auto"
    """The type of the written weights: auto (as stored), float32, bfloat16 or float16."""
    tolerance: float = 1e-5
    """The largest difference of a reloaded logit, relative to the largest logit."""
    overwrite: bool = False
    """Replace the directory if it exists."""


def inspect(options: InspectOptions) -> str:
    """Describes a shape. Raises ModelConfigError for one that cannot be, DataError for a length below 1."""
    from arch.pangu_pi.inspection import describe
    from arch.pangu_pi.load_config import load_model_config

    return describe(load_model_config(options.config), options.sequence_length)


def export(options: ExportOptions) -> str:
    """Exports a model.

    Raises:
        ExportError: the directory is there already, or the model does not reload to the same logits.
        WeightsError: the model cannot be read.
        FileNotFoundError: there is no such model or tokenizer.
    """
    from arch.pangu_pi.export import check_writable, export_model
    from arch.pangu_pi.load_weights import load_causal_lm
    from common.find_model import find_tokenizer, resolve_model

    source = resolve_model(options.model)
    found = find_tokenizer(source if options.tokenizer is None else options.tokenizer)
    if found is None and options.tokenizer is not None:
        raise FileNotFoundError(f"{options.tokenizer}: there is no tokenizer (tokenizer.json, a SentencePiece .model)")
    check_writable(options.out, options.overwrite)
    loaded = load_causal_lm(source, dtype=options.dtype)
    path = export_model(loaded, options.out, found, tolerance=options.tolerance, overwrite=options.overwrite)
    return f"exported to {path}; the reloaded logits agree"


def inherit(options: InheritConfig) -> str:
    """Cuts the model and says what every stage did. Raises as `arch.surgery.inherit.inherit` does."""
    from arch.surgery.inherit import inherit as cut_out

    report = cut_out(options)
    return f"{report.text()}\nwritten to {report.config.out}; the reloaded logits agree"
