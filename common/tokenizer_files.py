"""The files of a tokenizer: when a folder holds one, and how one goes from a folder into an export.

A folder from elsewhere holds other things besides: weights, notes, Python code that `auto_map` names. So a known list
of files is copied, never the folder; what names code is left out of the copies; and no file is written over another.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.untrusted_files import read_json

VISUAL_TOKENIZER = "visual_tokenizer.json"
"""What the folder of a tokenizer of images holds (the room `tokenizer` writes it, beside weights of its own)."""
VISUAL_FILES = (VISUAL_TOKENIZER, "model.safetensors")
SENTENCEPIECE = "tokenizer.model"
"""The name under which transformers looks for a SentencePiece model."""
TOKENIZER_FILES = (
    "tokenizer.json",
    SENTENCEPIECE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "vocabulary_map.json",
)
"""All that is ever copied of a tokenizer of text; the last is that of a compressed one."""
CODE_FIELDS = ("auto_map", "custom_generate", "custom_pipelines")
"""Fields of transformers' JSON files that name Python code, of the folder or of the hub."""
PATH_FIELDS = ("tokenizer_file", "vocab_file", "merges_file", "name_or_path")
"""Fields of a tokenizer_config.json that would be read in place of the files beside it."""
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
LIKELY_NAMES = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "unk_token": ("<unk>",),
    "pad_token": ("<pad>", "<|padding|>"),
}
"""Special tokens of a bare tokenizer.json, which does not say which of its tokens plays which part."""


class TokenizerFilesError(InputError, ValueError):
    """A file of a tokenizer cannot be used, or would take another's place."""


def holds_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer lies in this folder: the one rule of every command.

    It does where there is a tokenizer.json, one SentencePiece `.model`, or a `visual_tokenizer.json`.
    """
    names = ("tokenizer.json", VISUAL_TOKENIZER)
    return any((directory / name).is_file() for name in names) or sentencepiece_file(directory) is not None


def sentencepiece_file(directory: Path) -> Path | None:
    """The SentencePiece model of a folder: `tokenizer.model`, else the only `.model` file."""
    if (directory / SENTENCEPIECE).is_file():
        return directory / SENTENCEPIECE
    models = [file for file in directory.glob("*.model") if not file.name.startswith(".")]
    return models[0] if len(models) == 1 and models[0].is_file() else None


def copy_tokenizer_files(
    source: Path, target: Path, model_ids: Mapping[str, int | None] | None = None, automatic: bool = True
) -> list[str]:
    """Copies a tokenizer of text without what names code.

    Args:
        source: a folder for which `holds_tokenizer` is true.
        target: the folder to write into.
        model_ids: ids of `bos_token`, `eos_token`, ... in the model's configuration, for a tokenizer.json that lies
            alone.
        automatic: whether the copy goes on putting control tokens (bos, eos) around every text that it encodes.

    Returns:
        The names of the files written.

    Raises:
        FileNotFoundError: the folder holds no tokenizer, or a link in it leads nowhere.
        TokenizerFilesError: a file is no JSON, or `target` holds a file of that name.
    """
    if not holds_tokenizer(source):
        raise FileNotFoundError(
            f"{source}: no tokenizer (a folder with tokenizer.json, one SentencePiece .model or {VISUAL_TOKENIZER})"
        )
    written = []
    for name in TOKENIZER_FILES:
        file = sentencepiece_file(source) if name == SENTENCEPIECE else source / name
        if file is None or not _is_there(file):
            continue
        content = _changed(file, name, (source / "tokenizer.json").is_file(), automatic)
        if content is None:
            _copy(file, target / name)
        else:
            _write_json(content, target / name)
        written.append(name)
    if "tokenizer.json" in written and "tokenizer_config.json" not in written:
        names = special_names(source / "tokenizer.json", model_ids)
        _write_json({"tokenizer_class": "PreTrainedTokenizerFast", **names}, target / "tokenizer_config.json")
        written.append("tokenizer_config.json")
    return written


def copy_visual_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer of images into a folder of its own.

    Raises:
        FileNotFoundError: one of its two files is not there.
    """
    for name in VISUAL_FILES:
        if not _is_there(source / name):
            raise FileNotFoundError(f"{source / name}: no such file; a tokenizer of images consists of two")
        _copy(source / name, target / name)


def special_names(file: Path, model_ids: Mapping[str, int | None] | None = None) -> dict[str, str]:
    """What the special tokens of a tokenizer.json without tokenizer_config.json are called.

    Says, in this order: special_tokens_map.json, the ids in `model_ids` or in the config.json beside it, and the names
    that such tokens usually have.
    """
    vocabulary = _vocabulary(_mapping(file))
    stated = _mapping(file.with_name("special_tokens_map.json"))
    config = _mapping(file.with_name("config.json"))
    ids = model_ids or {role: config.get(f"{role}_id") for role in ROLES}
    by_id = {id_: name for name, id_ in vocabulary.items()}
    names: dict[str, str] = {}
    for role in ROLES:
        token = stated.get(role)
        name = token.get("content") if isinstance(token, dict) else token
        id_ = ids.get(role)
        if not isinstance(name, str):
            name = by_id.get(id_) if isinstance(id_, int) else None
        name = name or next((likely for likely in LIKELY_NAMES[role] if likely in vocabulary), None)
        if name is not None:
            names[role] = name
    return names


def names_code(directory: Path) -> bool:
    """Whether the tokenizer of this folder asks for Python code of its own."""
    return any(field in _mapping(directory / "tokenizer_config.json") for field in CODE_FIELDS)


def without_automatic_tokens(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The post-processor of a tokenizer.json without the control tokens that it puts around a text."""
    if not isinstance(processor, dict):
        return processor
    kind, steps = processor.get("type"), processor.get("processors")
    if kind == "Sequence" and isinstance(steps, list):
        return processor | {"processors": [without_automatic_tokens(step) for step in steps]}
    if kind in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
        first, second = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
        return {"type": "TemplateProcessing", "single": [first], "pair": [first, second], "special_tokens": {}}
    return processor


def _changed(file: Path, name: str, has_json: bool, automatic: bool) -> dict[str, Any] | None:
    """The content to write in place of a file's own; None where the file is copied as it is."""
    if not name.endswith(".json"):
        return None
    content = _mapping(file)
    if name == "tokenizer.json":
        processor = content.get("post_processor")
        plain = processor if automatic else without_automatic_tokens(processor)
        return None if plain == processor else content | {"post_processor": plain}
    if name != "tokenizer_config.json":
        return None
    left = {field: value for field, value in content.items() if field not in (*CODE_FIELDS, *PATH_FIELDS)}
    if "auto_map" in content:  # its class is the code that does not come along
        left.pop("tokenizer_class", None)
        left |= {"tokenizer_class": "PreTrainedTokenizerFast"} if has_json else {}
    if not automatic:
        left |= {"add_bos_token": False, "add_eos_token": False}
    return None if left == content else left


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    """{token: id} of a tokenizer.json; what is no token is passed over."""
    model, added = content.get("model"), content.get("added_tokens")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    pairs: list[tuple[Any, Any]] = []
    if isinstance(pieces, list):  # unigram: [piece, score]
        pairs += [(piece[0], id_) for id_, piece in enumerate(pieces) if isinstance(piece, list) and piece]
    elif isinstance(pieces, dict):
        pairs += pieces.items()
    if isinstance(added, list):
        pairs += [(token.get("content"), token.get("id")) for token in added if isinstance(token, dict)]
    return {name: id_ for name, id_ in pairs if isinstance(name, str) and isinstance(id_, int)}


def _mapping(file: Path) -> dict[str, Any]:
    """The content of a JSON file, {} where there is none."""
    if not _is_there(file):
        return {}
    content = read_json(file, TokenizerFilesError)
    if not isinstance(content, dict):
        raise TokenizerFilesError(f"{file}: expected a mapping of fields, found {type(content).__name__}")
    return content


def _is_there(file: Path) -> bool:
    if file.is_symlink() and not file.exists():
        raise FileNotFoundError(f"{file}: a link to {file.readlink()}, which is not there")
    return file.is_file()


def _copy(file: Path, target: Path) -> None:
    _refuse_existing(target)
    shutil.copyfile(file, target)


def _write_json(content: dict[str, Any], target: Path) -> None:
    _refuse_existing(target)
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise TokenizerFilesError(f"{target}: is there already, and the tokenizer's file does not take its place")


__all__ = [
    "CODE_FIELDS",
    "TOKENIZER_FILES",
    "VISUAL_TOKENIZER",
    "TokenizerFilesError",
    "copy_tokenizer_files",
    "copy_visual_tokenizer",
    "holds_tokenizer",
    "names_code",
    "sentencepiece_file",
    "special_names",
    "without_automatic_tokens",
]
