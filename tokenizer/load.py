"""Opens a tokenizer from whatever there is: a directory, SentencePiece model, tokenizer.json, GGUF file or hub id."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from common.errors import InputError
from common.tokenizer_files import copy_tokenizer_files, names_code, sentencepiece_file, special_names
from common.untrusted_files import read_bytes, read_json
from tokenizer.convert import to_backend, tokenizer_config
from tokenizer.model_proto import MAX_MODEL_BYTES, ModelFormatError, parse_model

if TYPE_CHECKING:  # transformers takes seconds to import; `python -m tokenizer --help` does not need it
    from transformers import PreTrainedTokenizerBase

DIRECTORY_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)
"""What transformers reads in the directory of a tokenizer."""
TRIAL = "A trial: the ids of 3 words, 文字 \u2581é\n"
"""What a tokenizer encodes and decodes before it is handed out."""


class TokenizerLoadError(InputError, ValueError):
    """There is something at the path, but no tokenizer that can be read."""


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer. Text is encoded without special tokens by `encode(text, add_special_tokens=False)`.

    Python code that lies beside it is never run; where a tokenizer_config.json names some, the tokenizer.json or the
    SentencePiece model is read alone.

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

        for file in filter(Path.is_file, (directory / name for name in DIRECTORY_FILES)):
            read_json(file, TokenizerLoadError)
        if not (directory / "tokenizer_config.json").is_file():
            return _from_json(directory / "tokenizer.json")
        with _native_errors(f"{directory}: cannot be read as a tokenizer"), _codeless(directory) as folder:
            return _tried(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if model := sentencepiece_file(directory):
        return _from_file(model)
    models = sorted(directory.glob("*.model"))
    weights = [] if models else sorted(directory.glob("*.gguf"))
    if len(weights) == 1:
        return _from_file(weights[0])
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
        proto = parse_model(read_bytes(file, TokenizerLoadError, MAX_MODEL_BYTES), str(file))
        with _native_errors(f"{file}: not a SentencePiece model that can be used"):
            return _tried(_wrapped(to_backend(proto, str(file)), tokenizer_config(proto)))
    except ModelFormatError as error:
        raise TokenizerLoadError(str(error)) from error


def _from_json(file: Path) -> "PreTrainedTokenizerBase":
    """A tokenizer.json alone; its directory's tokenizer_config.json is used when there is one."""
    if file.name == "tokenizer.json" and (file.parent / "tokenizer_config.json").is_file():
        return _from_directory(file.parent)
    backend = read_backend(file)
    with _native_errors(f"{file}: not a tokenizer.json that can be used"):
        return _tried(_wrapped(backend, {**special_names(file), "clean_up_tokenization_spaces": False}))


@contextmanager
def _codeless(directory: Path) -> Iterator[Path]:
    """The directory itself, or, where its tokenizer asks for Python code, a copy that does not."""
    if not names_code(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy_tokenizer_files(directory, Path(scratch))
        yield Path(scratch)


def read_backend(file: Path) -> Tokenizer:
    """The `tokenizers` pipeline in a tokenizer.json.

    Raises:
        TokenizerLoadError: it cannot be read.
    """
    read_json(file, TokenizerLoadError)  # bounds its size and depth before the library reads it
    with _native_errors(f"{file}: not a tokenizer.json"):
        return Tokenizer.from_file(str(file))


def _tried(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The same, after it has encoded and decoded a text: some damage shows only there."""
    tokenizer.decode(tokenizer.encode(TRIAL, add_special_tokens=False))
    return tokenizer


@contextmanager
def _native_errors(problem: str) -> Iterator[None]:
    """For the body of a `with`: whatever the library throws is a TokenizerLoadError that begins with `problem`."""
    try:
        yield
    except (TokenizerLoadError, ModelFormatError):
        raise
    except BaseException as error:
        # Damaged files raise bare Exception, or panic, which is no Exception and whose class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerLoadError(f"{problem} ({error})") from error


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
