"""`load_causal_lm`: weights on disk -> a `PanguPiForCausalLM`, whether ours, a plain LLaMA's or a GGUF file's."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import LlamaForCausalLM

from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.load_config import from_transformers, load_model_config
from common.errors import InputError
from common.find_model import gguf_file
from common.untrusted_files import is_plain_name, read_json


class WeightsError(InputError, ValueError):
    """Weights that cannot be read, or do not fit the configuration beside them."""


def load_causal_lm(path: str | Path, **options: Any) -> PanguPiForCausalLM:
    """The causal LM stored at `path`, in evaluation mode. Code that lies beside the weights is never run.

    Args:
        path: a directory with `config.json` and safetensors weights (an export or a checkpoint of ours, or any model
            whose type is `llama`), or a `.gguf` file of the llama architecture, or a directory that holds one.
        **options: passed on to transformers' `from_pretrained`, e.g. `dtype` or `attn_implementation`.

    Raises:
        FileNotFoundError: there is no model at `path`.
        ModelConfigError: the model is of another type, or its configuration is invalid.
        WeightsError: the weights cannot be read, or are not those of the configuration.
    """
    path = Path(path)
    if gguf := gguf_file(path):
        return _from_gguf(gguf, options)
    config = load_model_config(path)
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        _check_index(path / index)
    try:
        model, report = PanguPiForCausalLM.from_pretrained(
            path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except UnpicklingError:  # torch's own message runs over lines, and advises to run what is in the file
        raise WeightsError(
            f"{path}: the weights cannot be read (a pickle that is damaged, or asks for more than tensors, which is"
            " never done); take a .safetensors file of them"
        ) from None
    except SafetensorError as error:
        raise WeightsError(f"{path}: the weights cannot be read ({error})") from None
    for problem, names in (
        ("missing from the weights", report["missing_keys"]),
        ("in the weights and not in the model", report["unexpected_keys"]),
        ("of another shape in the weights", [name for name, *_ in report["mismatched_keys"]]),
    ):
        if names:
            raise WeightsError(f"{path}: {', '.join(sorted(names)[:3])} ({len(names)} in all) {problem}")
    return model


def _check_index(index: Path) -> None:
    """Refuses weights in several files of which one lies elsewhere."""
    if not index.is_file():
        return
    content = read_json(index, WeightsError)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(map(is_plain_name, names.values())):
        raise WeightsError(f"{index}: weight_map must give a file of this folder for every tensor")


def _from_gguf(path: Path, options: dict[str, Any]) -> PanguPiForCausalLM:
    """Let transformers dequantise the file into its own LLaMA, and take over its weights."""
    if hasattr(transformers, "GgufConfig"):  # transformers without it always dequantise
        options = options | {"quantization_config": transformers.GgufConfig(gguf_file=path.name, dequantize=True)}
    llama = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    shape = {name: value for name, value in llama.config.to_dict().items() if name != "quantization_config"}
    config = from_transformers(shape, str(path))
    return PanguPiForCausalLM.from_pretrained(None, config=config, state_dict=llama.state_dict(), dtype=llama.dtype)


__all__ = ["WeightsError", "load_causal_lm"]
