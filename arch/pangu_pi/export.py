"""`export_model`: a model in transformers format that loads anywhere, or nothing at all.

1. Write into a temporary directory beside the target: a plain LLaMA if the shape is LLaMA, otherwise the weights with
   the modeling files that they need (`auto_map`).
2. Reload it in a fresh process that cannot import this package, and compare logits on fixed sample tokens.
3. Rename it to its final name if they agree. Otherwise it is deleted, and `ExportError` says by how much they differ.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from arch import pangu_pi
from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from common.errors import InputError
from common.tokenizer_files import (
    CODE_FIELDS,
    TOKENIZER_FILES,
    VISUAL_TOKENIZER,
    copy_tokenizer_files,
    copy_visual_tokenizer,
)
from common.untrusted_files import read_json

VISUAL_DIRECTORY = "tokenizer"  # of an export, where a tokenizer of images lies
SAMPLE_SHAPE = (2, 32)  # rows and tokens that the original and the reloaded model are compared on
MODELING_FILES = (
    "configuration_pangu_pi.py",
    "modeling_pangu_pi.py",
    "series_activation.py",
    "augmented_shortcut.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_pangu_pi.PanguPiConfig",
    "AutoModel": "modeling_pangu_pi.PanguPiModel",
    "AutoModelForCausalLM": "modeling_pangu_pi.PanguPiForCausalLM",
}


class ExportError(InputError, RuntimeError):
    """The written model does not reload to the same logits; it has been deleted."""


def export_model(
    model: PanguPiForCausalLM,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    tolerance: float = 1e-5,
    overwrite: bool = False,
    attach: Callable[[Path], None] | None = None,
) -> Path:
    """Write `model` to `directory` in transformers format and prove that it reloads to the same logits.

    Args:
        model: the model, with all its weights present (not partitioned by ZeRO-3).
        directory: where to write; its parent is created.
        tokenizer: what to put beside the weights: a tokenizer, whose special tokens generation then knows, or the
            directory of one, of which a known list of files is copied; one of images has weights of its own and goes to
            `tokenizer/`. The tokenizer of an export encodes text as text: it adds no control token of its own accord,
            so that plain lm-eval, which puts bos first itself, scores the text alone.
        tolerance: the largest difference of a logit, relative to the largest logit (or to 1).
        overwrite: replace `directory` if it exists and holds a model (or nothing).
        attach: writes further files (.json, .png) into the directory that it is given, which becomes `directory`.

    Returns:
        `directory`.

    Raises:
        FileExistsError: `directory` exists and `overwrite` is off, or it holds something other than a model.
        ExportError: the reloaded logits differ, or it does not reload; nothing is left behind.
    """
    directory = Path(directory)
    check_writable(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        written = Path(scratch) / "model"
        _write_model(model, written)
        if tokenizer is not None:
            write_tokenizer(tokenizer, written, model.config)
        try:
            _verify(model, written, tolerance)
        except ExportError as error:
            raise ExportError(f"{directory}: {error}; nothing was written") from None
        if attach is not None:
            attach(written)
        if directory.exists():
            directory.replace(Path(scratch) / "replaced")
        written.replace(directory)
    return directory


def check_writable(directory: Path, overwrite: bool) -> None:
    """Refuse a directory that `export_model` would not write; long work asks before it begins.

    Raises:
        FileExistsError: it exists and `overwrite` is off, or it holds something other than a model.
    """
    if directory.exists() and not overwrite:
        raise FileExistsError(f"{directory}: exists already; choose another directory or overwrite it")
    if not _replaceable(directory):
        raise FileExistsError(f"{directory}: holds something other than an exported model, and is not replaced")


def _replaceable(directory: Path) -> bool:
    """Whether nothing but a model's own files would be lost."""
    if not directory.exists():
        return True
    files = list(directory.iterdir()) if directory.is_dir() else [directory]
    known = {".json", ".safetensors", ".py", ".model", ".jinja", ".png"}
    visual = directory / VISUAL_DIRECTORY
    if (visual / VISUAL_TOKENIZER).is_file():
        files = [*(file for file in files if file != visual), *visual.iterdir()]
    return not files or (
        (directory / "config.json").is_file()
        and all(file.is_file() and (file.suffix in known or file.name in TOKENIZER_FILES) for file in files)
    )


def llama_config(config: PanguPiConfig) -> LlamaConfig:
    """transformers' own configuration of the same shape, without PanGu-pi's fields.

    It names no padding token where that is the token that begins or ends documents: LLaMA would freeze its embedding
    when the export is trained on. Nor where it is no row of the embedding: LLaMA would refuse it, or take -1 for the
    last row. What generation pads with is in `generation_config.json` and in the tokenizer.
    """
    additions = {"model_type"} | set(PanguPiConfig().to_dict()) - set(LlamaConfig().to_dict())
    fields = {name: value for name, value in config.to_dict().items() if name not in additions}
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pad = config.pad_token_id
    if pad is not None and (pad in (config.bos_token_id, *ends) or not 0 <= pad < config.vocab_size):
        fields["pad_token_id"] = None
    return LlamaConfig(**fields)


def _write_model(model: PanguPiForCausalLM, directory: Path) -> None:
    (_as_llama(model) if model.config.is_llama else model).save_pretrained(directory)
    for name in ("config.json", "generation_config.json"):
        if (directory / name).is_file():
            _update_json(directory / name, {}, without=CODE_FIELDS)
    if model.config.is_llama:
        return
    source = Path(pangu_pi.__file__).parent
    for name in MODELING_FILES:
        shutil.copyfile(source / name, directory / name)
    _update_json(directory / "config.json", {"auto_map": AUTO_MAP})


def _as_llama(model: PanguPiForCausalLM) -> LlamaForCausalLM:
    """transformers' own class around the same weights, without a copy."""
    with torch.device("meta"):
        llama = LlamaForCausalLM(llama_config(model.config))
    llama.load_state_dict(model.state_dict(), assign=True)
    llama.tie_weights()
    llama.generation_config = model.generation_config
    return llama


def write_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path, directory: Path, config: PanguPiConfig | None = None
) -> None:
    """Put a tokenizer into a directory, without code and over no other file; see `export_model`.

    Raises:
        FileNotFoundError: there is no tokenizer.
        TokenizerFilesError: one of its files cannot be used.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save_pretrained(scratch)
            copy_tokenizer_files(Path(scratch), directory, automatic=False)
        special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        present = {name: value for name, value in special.items() if value is not None}
        _update_json(directory / "generation_config.json", present)
        return
    source = Path(tokenizer)
    if (source / VISUAL_TOKENIZER).is_file():
        (directory / VISUAL_DIRECTORY).mkdir()
        copy_visual_tokenizer(source, directory / VISUAL_DIRECTORY)
        return
    ids = config and {f"{role}_token": getattr(config, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    copy_tokenizer_files(source, directory, ids, automatic=False)


def check_tokenizer(tokenizer: Path) -> None:
    """Raise what `export_model` would raise for this tokenizer; long work asks before it begins."""
    with tempfile.TemporaryDirectory() as scratch:
        write_tokenizer(tokenizer, Path(scratch))


def _update_json(file: Path, fields: dict, without: tuple[str, ...] = ()) -> None:
    content = read_json(file, ExportError)
    kept = {name: value for name, value in content.items() if name not in without}
    file.write_text(json.dumps(kept | fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _verify(model: PanguPiForCausalLM, directory: Path, tolerance: float) -> None:
    """Compare the model's logits with those of the directory reloaded in another process."""
    ids_BS = torch.randint(model.config.vocab_size, SAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    expected = _logits(model, ids_BS)
    reloaded = _reloaded_logits(directory, ids_BS, str(model.device))
    scale = max(1.0, expected.abs().max().item())
    difference = (expected.float() - reloaded.float()).abs().max().item() / scale
    if not difference <= tolerance:  # also when it is NaN
        raise ExportError(f"the reloaded logits differ by {difference:.3g} of the largest (tolerance {tolerance:.3g})")


def _logits(model: PanguPiForCausalLM, ids_BS: torch.Tensor) -> torch.Tensor:
    training = model.training
    model.eval()
    try:
        # Not the kernels that training compiled: the reloaded model has none.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return model(input_ids=ids_BS.to(model.device)).logits.cpu()
    finally:
        model.train(training)


def _reloaded_logits(directory: Path, ids_BS: torch.Tensor, device: str) -> torch.Tensor:
    """The logits that a process without this package gets from `directory`."""
    script = Path(__file__).with_name("reload_check.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        exchange = Path(scratch) / "logits.safetensors"
        save_file({"input_ids": ids_BS}, exchange)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_MODULES_CACHE": f"{scratch}/modules", "HF_HUB_OFFLINE": "1"}
        # `-c` and an empty working directory: neither this folder nor the checkout is on the child's import path.
        child = subprocess.run(
            [sys.executable, "-c", script, str(directory.resolve()), str(exchange), device],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
        )
        if child.returncode:
            reason = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
            raise ExportError(f"the export does not reload ({reason[0]})")
        return load_file(exchange)["logits"]


__all__ = ["ExportError", "check_tokenizer", "check_writable", "export_model", "llama_config", "write_tokenizer"]
