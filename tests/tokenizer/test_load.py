"""Every form opens, saves and hashes alike; what cannot be opened says so."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.trained import MODEL_TYPES, train_config
from tokenizer.encoder import open_encoder
from tokenizer.fingerprint import tokenizer_hash
from tokenizer.load import TokenizerLoadError, load_tokenizer

TEXT = " Two  spaces,\n\t一丁七。</s> \u2581 1998 <|im_start|>"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_form_of_one_tokenizer_is_the_same(
    model_type: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = trained(model_type)
    tokenizer = load_tokenizer(directory)
    tokenizer.save_pretrained(tmp_path / "saved")
    shutil.copy(directory / "tokenizer.model", tmp_path / "alone.model")
    (tmp_path / "only_model").mkdir()
    shutil.copy(directory / "tokenizer.model", tmp_path / "only_model" / "any.model")
    forms = [
        directory,
        str(directory),
        directory / "tokenizer.json",
        directory / "tokenizer.model",
        tmp_path / "saved",
        tmp_path / "alone.model",
        tmp_path / "only_model",
    ]
    for form in forms:
        again = load_tokenizer(form)
        assert again.encode(TEXT) == tokenizer.encode(TEXT), form
        assert again.decode(again.encode(TEXT), skip_special_tokens=True) == TEXT, form
        assert tokenizer_hash(form) == tokenizer_hash(tokenizer), form
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / "saved")) == tokenizer_hash(directory)


def test_a_model_directory_of_transformers_does_not_change_the_class(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """Beside a config.json transformers would rather take the model type's own tokenizer class."""
    for model_type in ("llama", "pangu_pi"):
        target = tmp_path / model_type
        shutil.copytree(trained("bpe"), target)
        (target / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert load_tokenizer(target).encode(TEXT) == load_tokenizer(trained("bpe")).encode(TEXT)


def test_hash_is_stable_and_tells_tokenizers_apart(
    trained: Callable[[str], Path], corpus_file: Path, tmp_path: Path
) -> None:
    train = train_config(corpus_file, tmp_path, vocab_size=1601)
    from tokenizer.train import train_tokenizer

    train_tokenizer(train)
    hashes = {tokenizer_hash(path) for path in (trained("bpe"), trained("unigram"), tmp_path)}
    assert len(hashes) == 3
    program = f"from tokenizer.fingerprint import tokenizer_hash; print(tokenizer_hash({str(trained('bpe'))!r}))"
    other_process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other_process.stdout.strip() == tokenizer_hash(trained("bpe"))


def test_hash_changes_with_any_token(trained: Callable[[str], Path], tmp_path: Path) -> None:
    original = json.loads((trained("bpe") / "tokenizer.json").read_text(encoding="utf-8"))
    reference = tokenizer_hash(trained("bpe"))
    for number, edit in enumerate(
        (
            lambda content: content["model"]["merges"].pop(),
            lambda content: content["added_tokens"].pop(),
            lambda content: content["normalizer"]["normalizers"].pop(0),
        )
    ):
        content = json.loads(json.dumps(original))
        edit(content)
        target = tmp_path / str(number)
        shutil.copytree(trained("bpe"), target)
        (target / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        assert tokenizer_hash(target) != reference


def test_a_bare_tokenizer_json_finds_its_special_tokens(trained: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(trained("bpe") / "tokenizer.json", tmp_path / "other.json")
    tokenizer = load_tokenizer(tmp_path / "other.json")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token] == ["<s>", "</s>", "<pad>"]


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise.model").write_bytes(b"\x00\x01 no model")
    (tmp_path / "noise.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    for path in ("noise.model", "noise.json", "empty", "broken"):
        with pytest.raises(TokenizerLoadError, match=path):
            load_tokenizer(tmp_path / path)
    for path in ("missing.model", "missing/tokenizer.json", "missing"):
        with pytest.raises(FileNotFoundError, match="missing"):
            load_tokenizer(tmp_path / path)


@pytest.mark.parametrize("name", ["internlm", "internlm2", "chinese-llama/chinese_sp.model", "xlnet-zh/spiece.model"])
def test_foreign_models_open(name: str, real_data: Path) -> None:
    tokenizer = load_tokenizer(real_data / "tokenizers" / name)
    ids = tokenizer.encode("自然语言 and English", add_special_tokens=False)
    assert tokenizer.decode(ids) == "自然语言 and English"
    assert tokenizer.bos_token == "<s>" and tokenizer.eos_token == "</s>"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_encoder_gives_the_ids_of_tokenizer_json_even_beside_another_model(
    model_type: str, trained: Callable[[str], Path], corpus_texts: list[str], tmp_path: Path
) -> None:
    directory = trained(model_type)
    tokenizer = load_tokenizer(directory)
    texts = [TEXT, "", *corpus_texts[:50]]
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert open_encoder(directory)(texts) == expected
    other = trained(MODEL_TYPES[model_type == MODEL_TYPES[0]])
    shutil.copy(directory / "tokenizer.json", tmp_path)
    assert open_encoder(tmp_path)(texts) == expected
    shutil.copy(other / "tokenizer.model", tmp_path)
    assert open_encoder(tmp_path)(texts) == expected
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        open_encoder(tmp_path / "nowhere")
