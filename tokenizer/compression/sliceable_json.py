"""tokenizer.json with a BPE model, cut: vocabulary, merges and added tokens are restricted and renumbered.

A merge stays if both parts and their union stay. Normaliser, pre-tokeniser, decoder and chat template are not touched.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, pre_tokenizers

from tokenizer.compression.derivation import MergeRanks
from tokenizer.compression.sliceable import SliceableTokenizer, backend_encoder, is_special_name
from tokenizer.encoder import Encoder
from tokenizer.load import TokenizerLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG_FILE = "tokenizer_config.json"
STALE_KEYS = ("added_tokens_decoder", "auto_map", "backend", "is_local", "local_files_only", "tokenizer_file")
"""Of tokenizer_config.json: ids of the larger vocabulary, code that is not copied, traces of the loading."""


class JsonTokenizer(SliceableTokenizer):
    """A tokenizer.json with a BPE model.

    Args:
        content: of the file, as `tokenizers` writes it.
        origin: for messages.
        extras: the other files of its directory, by name.

    Raises:
        TokenizerLoadError: another model (WordPiece, Unigram, word level), or a BPE model with prefixes, suffixes or
            dropout.
    """

    def __init__(self, content: dict[str, Any], origin: str, extras: dict[str, bytes]):
        model = content["model"]
        _check(model, origin)
        self.content = content
        self.origin = origin
        self.extras = extras
        byte_level = any(node.get("type") == "ByteLevel" for node in _nodes(content["pre_tokenizer"])) or any(
            node.get("type") == "ByteLevel" for node in _nodes(content["normalizer"])
        )
        self.format = f"tokenizer.json BPE, {'byte-level' if byte_level else 'characters'}"
        self._byte_level = byte_level
        self._added = {token["id"]: token["content"] for token in content["added_tokens"]}
        names = {**{id_: name for name, id_ in model["vocab"].items()}, **self._added}
        self.names = [names.get(id_, "") for id_ in range(max(names) + 1)]
        characters = pre_tokenizers.ByteLevel.alphabet() if byte_level else ()
        self.required = frozenset(
            id_ for id_, name in names.items() if id_ in self._added or is_special_name(name) or name in characters
        )
        lossless = byte_level or model["byte_fallback"]
        self.alphabet = frozenset(() if lossless else (id_ for id_ in self.ordinary if len(self.names[id_]) == 1))

    @cached_property
    def merge_ranks(self) -> list[MergeRanks]:  # type: ignore[override]
        """The list of merges is the order."""
        vocabulary = self.content["model"]["vocab"]
        merges = enumerate(self.content["model"]["merges"])
        return [{(left, right): rank for rank, (left, right) in merges if left + right in vocabulary}]

    @cached_property
    def ordinary(self) -> list[int]:  # type: ignore[override]
        """Ids of the model's vocabulary that are neither added tokens nor byte pieces."""
        return sorted(
            id_
            for name, id_ in self.content["model"]["vocab"].items()
            if id_ not in self._added and not (name.startswith("<0x") and name.endswith(">"))
        )

    @cached_property
    def backend(self) -> Tokenizer:  # type: ignore[override]
        """The pipeline; special tokens spelt out in a text stay text."""
        backend = Tokenizer.from_str(json.dumps(self.content))
        backend.encode_special_tokens = True
        return backend

    def cut(self, kept: Sequence[int]) -> "JsonTokenizer":
        """The file restricted to the ids `kept`."""
        new_ids = {old: new for new, old in enumerate(kept)}
        content = json.loads(json.dumps(self.content))
        model = content["model"]
        vocabulary = {name: new_ids[id_] for name, id_ in model["vocab"].items() if id_ in new_ids}
        model["vocab"] = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left in vocabulary and right in vocabulary and left + right in vocabulary
        ]
        content["added_tokens"] = [
            {**token, "id": new_ids[token["id"]]} for token in content["added_tokens"] if token["id"] in new_ids
        ]
        for node in _nodes(content["post_processor"]):
            if node.get("type") == "TemplateProcessing":
                for token in node["special_tokens"].values():
                    token["ids"] = [new_ids[id_] for id_ in token["ids"]]
            for role in ("sep", "cls"):
                if role in node:
                    node[role] = [node[role][0], new_ids[node[role][1]]]
        return JsonTokenizer(content, self.origin, self.extras)

    def write(self, directory: Path) -> None:
        """Write tokenizer.json and the files that lay beside it."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, file_content in self.extras.items():
            (directory / name).write_bytes(file_content)
        (directory / "tokenizer.json").write_text(self.backend.to_str(pretty=True) + "\n", encoding="utf-8")

    def encoder(self) -> Encoder:
        """tokenizers' batch encoder."""
        return backend_encoder(self.backend)

    @property
    def encoder_file(self) -> tuple[str, bytes]:
        """tokenizer.json."""
        return "tokenizer.json", self.backend.to_str().encode()

    def surface(self, id_: int) -> str | None:
        """The piece's text, decoded by itself; None if its bytes are no whole characters."""
        if not self._byte_level:
            return self.names[id_].replace("\u2581", " ")
        text = self.backend.decode([id_], skip_special_tokens=False)
        return None if "\ufffd" in text else text


def open_json(tokenizer: "PreTrainedTokenizerBase", origin: str) -> JsonTokenizer:
    """A loaded transformers tokenizer, with the files that belong to it.

    Raises:
        TokenizerLoadError: it is not BPE, or has no tokenizer.json.
    """
    if not tokenizer.is_fast:
        raise TokenizerLoadError(f"{origin}: {type(tokenizer).__name__} has no tokenizer.json; only BPE can be cut")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name != "tokenizer.json"}
    config = json.loads(files[CONFIG_FILE])
    config = {name: value for name, value in config.items() if name not in STALE_KEYS}
    # The class of a model type would rebuild the pipeline from its own rules instead of reading it.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    files[CONFIG_FILE] = (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode()
    return JsonTokenizer(content, origin, files)


def _check(model: dict[str, Any], origin: str) -> None:
    if model["type"] != "BPE":
        raise TokenizerLoadError(
            f"{origin}: a {model['type']} tokenizer cannot be cut; give a SentencePiece model (BPE or unigram) or a BPE"
            " tokenizer.json"
        )
    for setting in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(setting):
            raise TokenizerLoadError(f"{origin}: a BPE model with {setting} ({model[setting]!r}) cannot be cut")


def _nodes(part: Any) -> Iterator[dict[str, Any]]:
    """A part of the pipeline and everything nested in it that has a type."""
    if isinstance(part, dict):
        if "type" in part:
            yield part
        for value in part.values():
            yield from _nodes(value)
    elif isinstance(part, list):
        for value in part:
            yield from _nodes(value)
