"""No door runs Python code that lies in a folder from elsewhere, nor carries it on.

Every option of a command that takes a model or a tokenizer is a door; one that is added without a line here fails.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from pathlib import Path

import pytest
from jsonargparse import ActionConfigFile
from transformers import LlamaForCausalLM

from arch.pangu_pi import export
from arch.pangu_pi.load_weights import load_causal_lm
from pretrain.tasks import LanguageModelTask
from pretrain.tasks.teacher import Teacher
from tests.arch.surgery_cases import write_map, write_shards
from tokenizer.fingerprint import tokenizer_hash
from tokenizer.load import load_tokenizer

NAMES = {"calibration", "config", "donor", "include_path", "initial_weights", "model", "run", "teacher", "tokenizer"}
NAMES |= {"vocabulary", "weights"}
"""Options of these names take a folder in which there may be a model or a tokenizer."""

SURGERY = "--calibration {shards} --rows 2 --sequence_length 16"
INHERIT = f"inherit {SURGERY} --loss_rows 2 --config {{yaml}} --criterion l2 --layers.protect 0 --layers.method last "
INHERIT += "--out {out}"
DOORS = {
    ("arch inspect", "config"): "inspect --config {foreign}",
    ("arch export", "model"): "export --model {foreign} --out {out} --dtype bfloat16",
    ("arch export", "tokenizer"): "export --model {clean} --tokenizer {foreign} --out {out}",
    ("arch inherit", "donor"): f"{INHERIT} --donor {{foreign}}",
    ("arch inherit", "config"): f"{INHERIT} --donor {{clean}} --config {{foreign}}",
    ("arch inherit", "tokenizer"): f"{INHERIT} --donor {{clean}} --tokenizer {{foreign}}",
    ("arch inherit", "vocabulary"): f"{INHERIT} --donor {{clean}} --vocabulary {{foreign}}",
    ("arch inherit", "calibration"): f"{INHERIT} --donor {{bare}} --calibration {{foreign_shards}}",
    ("arch bypass", "donor"): f"bypass --donor {{foreign}} {SURGERY} --ends 1 --spans [1] --output {{out}}",
    ("arch bypass", "calibration"): f"bypass --donor {{clean}} {SURGERY} --calibration {{foreign_shards}} --ends 1 "
    "--spans [1] --output {out}",
    ("tokenizer compress", "tokenizer"): "compress --tokenizer {foreign} --corpus {text} --vocab-size 259 --out {out} "
    "--workers 1",
    ("tokenizer inspect", "tokenizer"): "inspect --tokenizer {foreign} --sample en={text}",
    ("data_pipeline prepare", "tokenizer"): "prepare --input {text} --tokenizer {foreign} --output {out} --workers 1",
    ("data_pipeline remap", "tokenizer"): "remap --input {prepared} --tokenizer {foreign} --output {out} --workers 1",
    ("eval lm", "model"): "lm --model {foreign} --tasks held_out --include_path {tasks} --limit 1 --device cpu "
    "--output {out}",
    ("eval generate", "model"): "generate --model {foreign} --prompt a --tokens 1 --output {out}.json",
    (
        "eval collapse",
        "model",
    ): "collapse --model {foreign} --text {text} --tokens 40 --sequence_length 20 --device cpu --output {out}",
}
REFUSE = {
    ("arch bypass", "donor"): "no middle between",
    ("arch bypass", "calibration"): "no middle between",
    ("tokenizer compress", "tokenizer"): "special and byte pieces",
}
"""Doors that refuse this folder, after they have looked at it, and a part of what they say."""
NO_DOORS = {
    ("tokenizer visual import-vqgan", "weights"): "one file of safetensors",
    ("tokenizer visual encode", "tokenizer"): "a visual tokenizer: JSON and safetensors, built here",
    ("tokenizer visual decode", "tokenizer"): "the same",
    ("tokenizer visual inspect", "tokenizer"): "the same",
    ("data_pipeline replay", "run"): "order.json and token shards",
    ("eval lm", "include_path"): "lm-eval's YAML is code (docs/security.md)",
    ("eval forgetting", "run"): "a run's YAML is code (docs/security.md); its checkpoints are read by load_causal_lm",
    ("eval ocr", "model"): "recognisers: JSON and safetensors, built here",
    ("eval vision", "model"): "load_causal_lm and a visual tokenizer",
    ("eval report", "run"): "JSON and pictures",
    **{(f"eval {name}", "config"): "a grid's YAML is code (docs/security.md)"
       for name in ("ablation", "compare", "delvm", "ladder", "scaling", "shapes")},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by the names of the commands above; code in `foreign` writes the file `ran`."""
    root = tmp_path_factory.mktemp("doors")
    folder = {name: root / name for name in ("foreign", "clean", "bare", "foreign_shards", "shards", "ran", "prepared")}
    shutil.copytree(tiny_model, folder["clean"])
    shutil.copytree(tiny_model, folder["bare"], ignore=shutil.ignore_patterns("tokenizer*"))
    folder["text"] = root / "text.jsonl"
    folder["text"].write_text("".join(json.dumps({"text": f"the {n} old bridges " * 9}) + "\n" for n in range(30)))
    folder["yaml"] = root / "tiny.yaml"
    config = json.loads((tiny_model / "config.json").read_text())
    shape = {"num_hidden_layers": 1, "series_terms": 1, "shortcut_count": 0, "head_dim": 12}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    folder["yaml"].write_text(json.dumps({**shape, **{name: config[name] for name in names}}))

    # The foreign folder: shards of weights, a README, and code under every name by which transformers would find it.
    foreign = folder["foreign"]
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(foreign, max_shard_size="20KB")
    for file in tiny_model.glob("tokenizer*"):
        shutil.copy(file, foreign)
    for name, classes in (
        ("config.json", {"AutoConfig": "foreign.C", "AutoModel": "foreign.C", "AutoModelForCausalLM": "foreign.C"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "foreign.C"]}),
        ("generation_config.json", {}),
    ):
        content = json.loads((foreign / name).read_text()) | {"custom_generate": "foreign", "auto_map": classes}
        (foreign / name).write_text(json.dumps(content))
    (foreign / "custom_generate").mkdir()
    for name in ("foreign.py", "modeling_llama.py", "custom_generate/generate.py"):
        (foreign / name).write_text(f"from pathlib import Path\nPath({str(folder['ran'])!r}).touch()\nclass C: ...\n")
    (foreign / "README.md").write_text("a model\n")
    hash_ = tokenizer_hash(load_tokenizer(tiny_model))
    write_map(foreign / "vocabulary_map.json", list(range(260)), donor_vocab_size=260)
    content = json.loads((foreign / "vocabulary_map.json").read_text()) | {"donor_hash": hash_, "hash": hash_}
    (foreign / "vocabulary_map.json").write_text(json.dumps(content))
    prepare = (
        f"prepare --input {folder['text']} --tokenizer {folder['clean']} --output {folder['prepared']} --workers 1"
    )
    assert importlib.import_module("data_pipeline.__main__").main(prepare.split()) == 0
    for name in ("shards", "foreign_shards"):
        write_shards(folder[name], 400, 260, tokenizer=hash_)
        shutil.copytree(foreign if name == "foreign_shards" else tiny_model, folder[name] / "tokenizer")
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported is reloaded here, which saves ten seconds a model."""
    monkeypatch.setattr(
        export, "_reloaded_logits", lambda path, ids_BS, device: export._logits(load_causal_lm(path), ids_BS)
    )


@pytest.fixture(scope="module")
def tasks(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from eval.commands import HeldOutOptions
    from eval.language.held_out import make_tasks

    folder = tmp_path_factory.mktemp("tasks")
    make_tasks(HeldOutOptions(str(corpus), str(folder), documents=1, characters=40, items=1))
    return folder


def test_every_door_is_known() -> None:
    found = set()
    for room in ("arch", "tokenizer", "data_pipeline", "eval"):
        entry = importlib.import_module(f"{room}.__main__").DOOR
        found |= {
            (" ".join([room, *words]), action.dest)
            for words, parser in entry.parsers()
            for action in parser._actions
            if action.dest in NAMES and not isinstance(action, ActionConfigFile)
        }
    assert found == set(DOORS) | set(NO_DOORS)
    tasks = set(inspect.signature(LanguageModelTask.__mro__[1].__init__).parameters) & NAMES
    assert tasks == {"model", "initial_weights", "teacher", "weights"}  # the last are numbers


def check_nothing_ran(place: dict[str, Path], out: Path) -> None:
    assert not place["ran"].exists(), "code of the folder has run"
    carried = [file for file in out.rglob("*") if file.suffix in (".py", ".md")] if out.exists() else []
    assert not carried, "files that are no part of the result were carried into it"
    for file in out.rglob("*.json") if out.exists() else ():
        content = json.loads(file.read_text())
        if isinstance(content, dict):
            assert not {"auto_map", "custom_generate"} & content.keys(), file


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("command", "option"), DOORS)
def test_code_beside_it_neither_runs_nor_is_carried_on(
    command: str, option: str, place: dict[str, Path], tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [word.format(out=out, tasks=tasks, **place) for word in DOORS[command, option].split()]
    code = importlib.import_module(f"{command.split()[0]}.__main__").main(arguments)
    said = capsys.readouterr().err
    assert code == (1 if (command, option) in REFUSE else 0), said
    assert REFUSE.get((command, option), "") in said
    check_nothing_ran(place, out)
    if command == "arch export" or command == "arch inherit":
        assert len(list(out.glob("*.safetensors"))) == 1, "weights are stored once"
        assert load_tokenizer(out).encode("a bridge") == load_tokenizer(place["clean"]).encode("a bridge")
        assert export._replaceable(out)


def test_training_runs_none_either(place: dict[str, Path], tmp_path: Path) -> None:
    foreign = str(place["foreign"])
    task = LanguageModelTask(foreign, [str(place["prepared"])], initial_weights=foreign, sequence_length=16)
    assert task.initial_model(foreign).config.vocab_size == 260
    teacher = Teacher(foreign)
    teacher.check(260, tokenizer_hash(place["clean"]), lambda folder: tokenizer_hash(folder))
    assert teacher.model().config.hidden_size == 24
    load_tokenizer(place["foreign"]).save_pretrained(tmp_path / "saved")
    check_nothing_ran(place, tmp_path)


@pytest.mark.usefixtures("in_this_process")
def test_our_export_opens_without_the_code_beside_it(place: dict[str, Path], tmp_path: Path) -> None:
    """And what is exported again carries this package's files, not the folder's."""
    from arch.__main__ import main
    from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
    from arch.pangu_pi.export import MODELING_FILES
    from eval.models import load_model

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PanguPiForCausalLM(PanguPiConfig(vocab_size=260, shortcut_reduction=4, **small))
    first = export.export_model(model, tmp_path / "first", place["clean"])
    canary = f"from pathlib import Path\nPath({str(place['ran'])!r}).touch()\n"
    for name in MODELING_FILES:
        (first / name).write_text(canary)
    assert isinstance(load_model(str(first), "cpu").model, PanguPiForCausalLM)
    assert main(["export", "--model", str(first), "--out", str(tmp_path / "second")]) == 0
    assert not place["ran"].exists()
    ours = Path(export.__file__).parent
    for name in MODELING_FILES:
        assert (tmp_path / "second" / name).read_bytes() == (ours / name).read_bytes()
