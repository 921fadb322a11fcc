"""Where a model lies: from what a person would name to the directory or file that `load_causal_lm` reads.

Imports neither torch nor transformers, so that commands can complain about a path at once.
"""

import re
from pathlib import Path

from common.config_file import ModelConfigError
from common.tokenizer_files import VISUAL_TOKENIZER, holds_tokenizer

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Files that hold weights in transformers' format."""


def resolve_model(name: str | Path) -> Path:
    """Where the model that `name` means lies.

    Args:
        name: a run directory (its newest checkpoint is taken), anything that `load_causal_lm` takes, or the id of a hub
            model (`owner/name`), whose configuration, safetensors and tokenizer are downloaded or found in the cache.

    Raises:
        FileNotFoundError: there is no model there, nor on the hub.
        ModelConfigError: a directory holds several GGUF files.
    """
    path = Path(name)
    if not path.exists():
        return _from_hub(str(name))
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    for checkpoint in newest_checkpoints(path):
        if (checkpoint / "config.json").is_file() and any(next(checkpoint.glob(pattern), None) for pattern in WEIGHTS):
            return checkpoint
    if gguf := gguf_file(path):
        return gguf
    raise FileNotFoundError(f"{path}: neither a model (config.json, .gguf) nor a run with a complete checkpoint")


def newest_checkpoints(run: str | Path) -> list[Path]:
    """Complete checkpoints of a run directory, newest first; one that is being written still ends in `.tmp`."""
    checkpoints = (Path(run) / "checkpoints").glob("step_*")
    return sorted((path for path in checkpoints if path.is_dir() and path.suffix != ".tmp"), reverse=True)


def folder_with(path: str | Path, *names: str) -> Path | None:
    """The folder that holds one of these files: `path` itself, else the newest checkpoint of that run that does."""
    folders = (Path(path), *newest_checkpoints(path))
    return next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)


def find_tokenizer(path: str | Path) -> Path | None:
    """The tokenizer directory of a model: its `tokenizer/`, itself if it holds one (`holds_tokenizer`), or none.

    A tokenizer of images (`VISUAL_TOKENIZER`) counts as one of text does. That of a file (a GGUF, a tokenizer.json) is
    looked for beside it.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    return next(filter(holds_tokenizer, (folder / "tokenizer", folder)), None)


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds; a directory that holds weights in transformers' format is read as those.

    Raises:
        ModelConfigError: the directory holds several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        return None
    files = sorted(file for file in path.rglob("*.gguf") if not file.name.startswith("."))
    if len(files) > 1:
        raise ModelConfigError(f"{path}: holds {len(files)} GGUF files; name one of them")
    return files[0] if files else None


def _from_hub(name: str) -> Path:
    """The snapshot of a hub model, without code and without pickles."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise FileNotFoundError(f"{name}: there is no such model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model"]))
    except OSError as error:  # every error of the hub's client is one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"{name}: no such directory, and not to be had from the hub ({reason})") from None


__all__ = ["VISUAL_TOKENIZER", "find_tokenizer", "folder_with", "gguf_file", "newest_checkpoints", "resolve_model"]
