"""Models, what they cost, and how they leave: imports torch and transformers only, and knows nothing of training.

pangu_pi/         PanGu-pi and, with its additions off, LLaMA: configuration, modeling files, the two additions
config_file.py    fields from YAML or JSON, names checked
outside_files.py  JSON and YAML that may come from elsewhere: bounded, then typed; every room reads through it
model_config.py   load_model_config: YAML of configs/models/, a transformers directory or a mapping -> PanguPiConfig
loading.py        load_causal_lm: an export, a checkpoint, a plain LLaMA directory or a GGUF file -> the model
packed_attention.py  documents of packed rows kept apart without a mask of S x S numbers
accounting.py     count_parameters, count_flops: exact, by arithmetic, for any size; inspection.py prints them
export.py         export_model: transformers format, verified by reload_check.py in a fresh process
parseq/           text recognition; its own front: arch.parseq
visual/           images to codes and back; its own front: arch.visual
clip4str/         text recognition on top of CLIP, with PARSeq's decoder twice; its own front: arch.clip4str
surgery/          a smaller model out of a larger one: python -m arch inherit | bypass
__main__.py       python -m arch inspect | export | inherit | bypass
"""

import importlib
from typing import Any

_HOMES = {
    "PanguPiConfig": "pangu_pi",
    "PanguPiForCausalLM": "pangu_pi",
    "PanguPiModel": "pangu_pi",
    "ModelConfigError": "config_file",
    "load_model_config": "model_config",
    "WeightsError": "loading",
    "load_causal_lm": "loading",
    "count_flops": "accounting",
    "count_parameters": "accounting",
    "ExportError": "export",
    "export_model": "export",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import arch` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'arch' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
