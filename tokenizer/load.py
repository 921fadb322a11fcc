"""Opens a tokenizer from whatever there is: a directory, SentencePiece model, tokenizer.json, GGUF file or hub id."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from tokenizer.convert import to_backend, tokenizer_config
from tokenizer.model_proto import ModelFormatError, parse_model

if TYPE_CHECKING:  # transformers takes seconds to import; `python -m tokenizer --help` does not need it
    from transformers import PreTrainedTokenizerBase

LIKELY_NAMES = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "unk_token": ("<unk>",),
    "pad_token": ("<pad>", "<|padding|>"),
}
"""Special tokens of a bare tokenizer.json, which does not say which of its tokens plays which part."""


class TokenizerLoadError(ValueError):
    """There is something at the path, but no tokenizer that can be read."""


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer. Text is encoded without special tokens by `encode(text, add_special_tokens=False)`.

    Args:
        path: a directory (tokenizer.json, else a SentencePiece model, else a GGUF file), a SentencePiece `.model` file
            (ours or any other), a `tokenizer.json` file, a `.gguf` file (20 seconds, needs the package gguf), or the id
            of a repository on the hub.

    Returns:
        A transformers tokenizer. Of our own tokenizers, and of SentencePiece models, it never reads a special token out
        of the text: a literal "</s>" is encoded as those four characters.

    Raises:
        FileNotFoundError: a path that does not exist.
        TokenizerLoadError: the file or directory holds no readable tokenizer.
    """
    from transformers import AutoTokenizer

    location = Path(path)
    if location.is_dir():
        return _from_directory(location)
    if location.is_file():
        return _from_file(location)
    if (
        location.suffix in (".model", ".json")
        or str(path).startswith(("/", "./", "../", "~"))
        or str(path).count("/") > 1
    ):
        raise FileNotFoundError(f"{path}: no such file or directory")
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise FileNotFoundError(
            f"{path}: no file or directory of this name, and not readable from the hub ({reason})"
        ) from error


def _from_directory(directory: Path) -> "PreTrainedTokenizerBase":
    if (directory / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # tokenizers raises bare Exception for a damaged file
            raise TokenizerLoadError(f"{directory}: cannot be read as a tokenizer ({error})") from error
    models = sorted(directory.glob("*.model"))
    weights = [] if models else sorted(directory.glob("*.gguf"))
    if len(models) + len(weights) == 1:
        return _from_file([*models, *weights][0])
    found = ", ".join(file.name for file in [*models, *weights]) or "none of them"
    raise TokenizerLoadError(
        f"{directory}: needs a tokenizer.json, one SentencePiece .model file or one .gguf file, found {found}"
    )


def _from_file(file: Path) -> "PreTrainedTokenizerBase":
    if file.suffix == ".json":
        return _from_json(file)
    if file.suffix == ".gguf":
        return _from_gguf(file)
    try:
        proto = parse_model(file.read_bytes(), str(file))
    except ModelFormatError as error:
        raise TokenizerLoadError(str(error)) from error
    return _wrapped(to_backend(proto, str(file)), tokenizer_config(proto))


def _from_json(file: Path) -> "PreTrainedTokenizerBase":
    """A tokenizer.json alone; its directory's tokenizer_config.json is used when there is one."""
    if file.name == "tokenizer.json" and (file.parent / "tokenizer_config.json").is_file():
        return _from_directory(file.parent)
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerLoadError(f"{file}: not a tokenizer.json ({error})") from error
    vocabulary = backend.get_vocab()
    found = {part: [name for name in names if name in vocabulary] for part, names in LIKELY_NAMES.items()}
    named = {part: names[0] for part, names in found.items() if names}
    return _wrapped(backend, {**named, "clean_up_tokenization_spaces": False})


def _from_gguf(file: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer inside a GGUF file of weights, as transformers reads it."""
    from transformers import AutoTokenizer

    if find_spec("gguf") is None:
        raise TokenizerLoadError(f"{file}: reading GGUF needs the package gguf; pip install 'tinypi[donor]'")
    try:
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # gguf and transformers raise many unrelated types for a damaged file
        raise TokenizerLoadError(f"{file}: no tokenizer can be read out of this GGUF file ({error})") from error


def _wrapped(backend: Tokenizer, config: dict[str, Any]) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, **config)
