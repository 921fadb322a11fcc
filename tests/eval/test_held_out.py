"""Held-out tasks: the questions are what they claim, and lm-eval's own command gives the numbers of
`eval.language.lm`."""

import json
import math
import random
import shutil
import sys

import pytest
import torch
import yaml

from arch.__main__ import main as arch_command
from arch.pangu_pi import export
from arch.pangu_pi.load_weights import load_causal_lm
from eval.__main__ import main
from eval.commands import HeldOutOptions
from eval.language.held_out import HeldOutError, continuation_items, find_documents, make_tasks
from eval.language.lm import evaluate, flatten, load_tasks
from eval.models import load_model


def options(corpus, output, **changes) -> HeldOutOptions:
    small = {"documents": 2, "characters": 120, "items": 5}
    return HeldOutOptions(data=str(corpus), output=str(output), **(small | changes))


def test_the_true_continuation_follows_the_passage_and_the_others_do_not(corpus):
    for texts in find_documents(corpus, "valid").values():
        items = continuation_items(texts, 40, random.Random(0))
        assert len(items) == 40
        for item in items:
            follows = [any(item["context"] + choice in text for text in texts) for choice in item["choices"]]
            assert follows.index(True) == item["label"] and sum(follows) == 1
            assert len(set(item["choices"])) == 4
        assert {item["label"] for item in items} == {0, 1, 2, 3}


def test_cuts_fall_on_spaces_where_there_are_spaces(corpus):
    for item in continuation_items(find_documents(corpus, "valid")["en"], 20, random.Random(1)):
        assert all(choice.startswith(" ") for choice in item["choices"])
        assert not item["context"].endswith(" ")


def test_same_seed_same_bytes(corpus, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_tasks(options(corpus, tmp_path / name, seed=seed))
    files = sorted(path.name for path in (tmp_path / "a").glob("*.jsonl"))
    assert files == ["held_out_bpb_en.jsonl", "held_out_bpb_zh.jsonl", "held_out_continuation.jsonl"]
    content = {name: b"".join((tmp_path / name / file).read_bytes() for file in files) for name in "abc"}
    assert content["a"] == content["b"] != content["c"]


def test_one_language_alone(corpus, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "valid.zh.jsonl").write_bytes((corpus / "valid.zh.jsonl").read_bytes())
    assert make_tasks(options(tmp_path / "data", tmp_path / "out")) == [
        "held_out_bpb_zh",
        "held_out_continuation",
        "held_out",
    ]


@pytest.mark.parametrize("name", ["tiny_model", "bos_model"])
def test_bits_per_byte_is_the_definition(name, request, tmp_path):
    """After one bos, and over the text's own tokens, whether or not the tokenizer would put a bos there too."""
    tiny_model = request.getfixturevalue(name)
    (tmp_path / "valid.zh.jsonl").write_text(json.dumps({"text": "山高水长 abc"}, ensure_ascii=False) + "\n", "utf-8")
    make_tasks(options(tmp_path, tmp_path / "tasks"))
    raw = evaluate(str(tiny_model), ["held_out_bpb_zh"], include_path=tmp_path / "tasks", device="cpu")
    loaded = load_model(str(tiny_model), "cpu")
    ids = loaded.tokenizer.encode("山高水长 abc", add_special_tokens=False)
    with torch.no_grad():
        logits_SV = loaded.model(torch.tensor([[1, *ids]])).logits[0, :-1]
    nats = -logits_SV.log_softmax(-1)[range(len(ids)), ids].sum()
    bits = float(nats) / math.log(2) / len("山高水长 abc".encode())
    assert flatten(raw)["held_out_bpb_zh"]["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_plain_lm_eval_gives_the_same_numbers(corpus, bos_model, tmp_path, monkeypatch):
    """A checkpoint whose tokenizer puts bos before every text, its export, and the export by lm-eval's own command."""
    from lm_eval.__main__ import cli_evaluate

    make_tasks(options(corpus, tmp_path / "tasks"))
    checkpoint, exported = tmp_path / "checkpoint", tmp_path / "export"
    checkpoint.mkdir()
    for file in bos_model.iterdir():
        place = checkpoint / "tokenizer" if file.name.startswith("tokenizer") else checkpoint
        place.mkdir(exist_ok=True)
        shutil.copy(file, place)
    monkeypatch.setattr(
        export, "_reloaded_logits", lambda path, ids_BS, device: export._logits(load_causal_lm(path), ids_BS)
    )
    assert arch_command(["export", "--model", str(checkpoint), "--out", str(exported)]) == 0
    ours, again = (
        flatten(evaluate(str(model), ["held_out"], include_path=tmp_path / "tasks", device="cpu", batch_size=2))
        for model in (exported, checkpoint)
    )
    arguments = ["--model", "hf", "--model_args", f"pretrained={exported},trust_remote_code=True", "--device", "cpu"]
    arguments += ["--tasks", "held_out", "--batch_size", "2", "--output_path", str(tmp_path / "out")]
    arguments += ["--include_path", str(tmp_path / "tasks")]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    # The command would index all of lm-eval's tasks first, which takes longer than everything else here.
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__", _without_defaults())
    cli_evaluate()
    (written,) = (tmp_path / "out").rglob("results*.json")
    theirs = flatten(json.loads(written.read_text()))
    assert ours == again == theirs and set(ours) == {"held_out_bpb_en", "held_out_bpb_zh", "held_out_continuation"}


def _without_defaults():
    from lm_eval.tasks import TaskManager

    original = TaskManager.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **(kwargs | {"include_defaults": False}))

    return init


def test_group_and_members_together_count_once(corpus, tmp_path):
    names = make_tasks(options(corpus, tmp_path))
    (group,) = load_tasks(sorted(names), include_path=tmp_path)
    assert group.name == "held_out" and set(group.child_names) == set(names[:-1])


def test_yaml_is_ordinary(corpus, tmp_path):
    make_tasks(options(corpus, tmp_path))
    config = yaml.safe_load((tmp_path / "held_out_continuation.yaml").read_text())
    assert config["dataset_path"] == "json" and "!function" not in (tmp_path / "held_out_continuation.yaml").read_text()


def test_errors_say_what_is_missing(tmp_path, capsys):
    with pytest.raises(HeldOutError, match=r"no documents in valid\.LANGUAGE\.jsonl"):
        find_documents(tmp_path, "valid")
    (tmp_path / "valid.en.jsonl").write_text('{"txt": "x"}\n')
    assert main(["held-out", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "valid.en.jsonl:1: no field 'text'" in capsys.readouterr().err
