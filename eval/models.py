"""Opens whatever a user names as a model: a run, a checkpoint, an export, any transformers folder, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arch.device import choose_device
from common import find_model
from common.errors import InputError
from common.find_model import find_tokenizer, gguf_file
from common.untrusted_files import read_json

OUR_MODEL_TYPES = frozenset({"pangu_pi", "llama"})


class ModelLoadError(InputError, ValueError):
    """The named model cannot be loaded; the message says what was looked for."""


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in eval mode and its tokenizer."""

    model: Any
    """A transformers ``PreTrainedModel``; ours (`arch`) when the weights are PanGu-pi or LLaMA shaped."""
    tokenizer: Any
    """A transformers tokenizer."""
    source: str
    """The folder or hub id that was loaded."""


def resolve_model(path: str) -> str:
    """`common.find_model.resolve_model`, but a hub id is returned as it is: transformers loads any of them."""
    directory = Path(path)
    if not directory.exists():
        if path.count("/") > 1 or path.startswith((".", "/", "~")):
            raise ModelLoadError(f"model {path!r}: there is no such folder")
        return path
    if not directory.is_dir() and directory.suffix != ".gguf":
        raise ModelLoadError(f"model {path!r} is a file; name the folder that holds config.json and the weights")
    try:
        return str(find_model.resolve_model(directory))
    except FileNotFoundError as error:
        raise ModelLoadError(f"model {error}") from None


def load_model(
    path: str, device: str | None = None, trust_remote_code: bool = False, dtype: str = "auto"
) -> LoadedModel:
    """Loads a model for evaluation; with the same ``dtype``, the one that ``lm_eval --model hf`` loads.

    Args:
        path: run, checkpoint or export directory, folder of any transformers model, GGUF file or its folder, or a hub
            id. Weights in transformers' format come before a GGUF file beside them.
        device: torch device; None takes the accelerator if there is one.
        trust_remote_code: lets a model that is not ours bring its own Python code. Ours never needs it.
        dtype: of the weights; ``auto`` is the stored one.

    Raises:
        ModelLoadError: nothing loadable there.
    """
    from transformers import AutoModelForCausalLM

    source = resolve_model(path)
    directory = Path(source)
    gguf = gguf_file(directory)
    try:
        if gguf or _model_type(directory) in OUR_MODEL_TYPES:
            from arch.pangu_pi.load_weights import load_causal_lm

            model = load_causal_lm(gguf or source, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code)
        tokenizer = _open_tokenizer(directory, gguf, trust_remote_code)
    except OSError as error:
        raise ModelLoadError(f"model {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelLoadError(
            f"model {path!r} brings Python code of its own, which is not run unless you say --trust_remote_code true;"
            " read it first"
        ) from None
    return LoadedModel(model.to(choose_device(device)).eval(), tokenizer, source)


def _open_tokenizer(directory: Path, gguf: Path | None, trust_remote_code: bool) -> Any:
    """The tokenizer of a model; that of a checkpoint of ours in the form that its export will have."""
    from transformers import AutoTokenizer

    from eval.harness_model import as_exported
    from tokenizer.load import load_tokenizer

    if gguf is not None:
        return load_tokenizer(gguf)
    if not directory.is_dir():
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
    found = find_tokenizer(directory)
    if found is None:
        raise ModelLoadError(f"{directory}: no tokenizer lies beside the weights; copy its files there")
    if trust_remote_code:
        return AutoTokenizer.from_pretrained(found, trust_remote_code=True)
    tokenizer = load_tokenizer(found)
    return tokenizer if found == directory else as_exported(tokenizer)


def _model_type(directory: Path) -> str | None:
    """``model_type`` of a folder's config.json; None for a hub id."""
    config = directory / "config.json"
    if not config.is_file():
        return None
    content = read_json(config, ModelLoadError)
    if not isinstance(content, dict):
        raise ModelLoadError(f"{config}: expected a mapping of fields, found {type(content).__name__}")
    return content.get("model_type")
