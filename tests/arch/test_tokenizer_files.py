"""When a folder holds a tokenizer, and what of it goes into an export."""

import json
from pathlib import Path

import pytest

from common.find_model import find_tokenizer, gguf_file
from common.tokenizer_files import (
    TokenizerFilesError,
    copy_tokenizer_files,
    holds_tokenizer,
    special_names,
    without_automatic_tokens,
)
from common.untrusted_files import read_json

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PIECES = {"<|end|>": 0, "<s>": 1, "</s>": 2, "a": 3}


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_one_rule_says_where_a_tokenizer_is(tmp_path):
    for name, holds in {
        "json/tokenizer.json": True,
        "visual/visual_tokenizer.json": True,
        "sentencepiece/any.model": True,
        "config/tokenizer_config.json": False,  # says how one is used, and is none
        "companion/._any.model": False,
        "weights/model.safetensors": False,
    }.items():
        folder = write(tmp_path / name, {}).parent
        assert holds_tokenizer(folder) is holds, name
        assert find_tokenizer(folder) == (folder if holds else None)
    assert find_tokenizer(write(tmp_path / "json" / "x.gguf", {})) == tmp_path / "json"
    write(tmp_path / "both" / "tokenizer.json", {})
    write(tmp_path / "both" / "tokenizer" / "tokenizer.json", {})
    assert find_tokenizer(tmp_path / "both") == tmp_path / "both" / "tokenizer"
    write(tmp_path / "two" / "a.model", {}), write(tmp_path / "two" / "b.model", {})
    assert not holds_tokenizer(tmp_path / "two"), "which of them?"


def test_weights_of_transformers_come_before_a_gguf(tmp_path):
    gguf = write(tmp_path / "model.gguf", {})
    assert gguf_file(tmp_path) == gguf
    write(tmp_path / "config.json", {})
    assert gguf_file(tmp_path) == gguf, "a configuration is no weights"
    write(tmp_path / "model-00001-of-00002.safetensors", {})
    assert gguf_file(tmp_path) is None


def test_a_hubs_links_are_copied_as_files_under_the_names_that_transformers_knows(tmp_path):
    blob = write(tmp_path / "blobs" / "0f", {"model": {"vocab": PIECES}})
    source, target = tmp_path / "snapshot", tmp_path / "out"
    source.mkdir(), target.mkdir()
    (source / "tokenizer.json").symlink_to(blob)
    (source / "chinese_sp.model").symlink_to(write(tmp_path / "blobs" / "1f", "pieces"))
    assert copy_tokenizer_files(source, target) == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert not any(file.is_symlink() for file in target.iterdir())
    assert (target / "tokenizer.json").read_bytes() == blob.read_bytes()
    (source / "merges.txt").symlink_to("gone.txt")
    with pytest.raises(FileNotFoundError, match=r"merges\.txt: a link to gone\.txt, which is not there"):
        copy_tokenizer_files(source, empty(tmp_path / "other"))


def test_no_file_takes_anothers_place(tmp_path):
    source = write(tmp_path / "in" / "tokenizer.json", {}).parent
    mine = write(tmp_path / "out" / "tokenizer.json", {"mine": 1})
    with pytest.raises(TokenizerFilesError, match="is there already"):
        copy_tokenizer_files(source, mine.parent)
    assert read_json(mine, ValueError) == {"mine": 1}


def test_what_names_code_or_another_file_stays_behind(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    target.mkdir()
    write(source / "tokenizer.json", {"post_processor": BYTES})
    kept = {"bos_token": "<s>", "model_max_length": 9}
    named = {"auto_map": {}, "custom_generate": "x", "tokenizer_file": "/etc/passwd", "tokenizer_class": "Foreign"}
    write(source / "tokenizer_config.json", kept | named)
    copy_tokenizer_files(source, target, automatic=False)
    written = read_json(target / "tokenizer_config.json", ValueError)
    assert written == kept | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
    }
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    write(source / "tokenizer_config.json", [])
    with pytest.raises(TokenizerFilesError, match=r"tokenizer_config\.json: expected a mapping"):
        copy_tokenizer_files(source, empty(tmp_path / "other"))


def test_roles_of_a_tokenizer_json_alone(tmp_path):
    file = write(tmp_path / "tokenizer.json", {"model": {"vocab": [["<|end|>", 0.0], ["<s>", 0.0], ["</s>", -1.0]]}})
    assert special_names(file) == {"bos_token": "<s>", "eos_token": "</s>"}, "by their usual names"
    write(tmp_path / "config.json", {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 77})
    assert special_names(file) == {"bos_token": "<|end|>", "eos_token": "<|end|>"}, "by the ids of the model"
    assert special_names(file, {"bos_token": 2})["bos_token"] == "</s>"
    write(tmp_path / "special_tokens_map.json", {"bos_token": {"content": "<s>"}, "unk_token": "<|end|>"})
    assert special_names(file) == {"bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<|end|>"}


def test_no_post_processor_is_left_that_adds_a_token():
    from tokenizers import Tokenizer, models, processors

    special = [("<s>", 1), ("</s>", 2)]
    for processor in (
        processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A $B", special_tokens=special),
        processors.BertProcessing(special[1], special[0]),
        processors.RobertaProcessing(special[1], special[0]),
        processors.Sequence([
            processors.ByteLevel(), processors.TemplateProcessing(single="<s> $A", special_tokens=special)
        ]),
    ):  # fmt: skip
        tokenizer = Tokenizer(models.WordLevel(PIECES, unk_token="<|end|>"))
        tokenizer.post_processor = processor
        content = json.loads(tokenizer.to_str())
        assert len(tokenizer.encode("a").ids) > 1
        content["post_processor"] = without_automatic_tokens(content["post_processor"])
        plain = Tokenizer.from_str(json.dumps(content))
        assert plain.encode("a").ids == [3] and plain.encode("a", "a").ids == [3, 3]
    assert without_automatic_tokens(BYTES) == BYTES and without_automatic_tokens(None) is None
