"""Finding models and tasks, evaluating in memory during training, and what the command says when something is wrong."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from eval.__main__ import main
from eval.commands import HeldOutOptions
from eval.hooks import LmEvalHook
from eval.language.held_out import make_tasks
from eval.language.lm import EvaluationError, evaluate, flatten, load_tasks, unnamed_bars_hidden, write_results
from eval.models import ModelLoadError, load_model, resolve_model


@pytest.fixture
def tasks(corpus, tmp_path):
    make_tasks(HeldOutOptions(str(corpus), str(tmp_path / "tasks"), documents=1, characters=80, items=2))
    return tmp_path / "tasks"


@pytest.fixture
def few_tasks_only(monkeypatch):
    """Indexing lm-eval's 14,000 tasks takes longer than the tests."""
    from lm_eval.tasks import TaskManager

    original = TaskManager.__init__
    monkeypatch.setattr(
        TaskManager, "__init__", lambda self, *a, **k: original(self, *a, **(k | {"include_defaults": False}))
    )


def make_run(tiny_model, run, steps):
    """A run directory with checkpoints as the trainer writes them."""
    for step in steps:
        checkpoint = run / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(tiny_model, checkpoint)
        (checkpoint / "tokenizer").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (checkpoint / name).rename(checkpoint / "tokenizer" / name)
    return run


def test_a_run_resolves_to_its_newest_complete_checkpoint(tiny_model, tmp_path):
    run = make_run(tiny_model, tmp_path / "run", [5, 40, 300])
    (run / "checkpoints" / "step_00000400.tmp").mkdir()
    next((run / "checkpoints" / "step_00000300").glob("*.safetensors")).unlink()
    assert resolve_model(str(run)).endswith("step_00000040")
    assert resolve_model(str(run / "checkpoints" / "step_00000005")).endswith("step_00000005")
    assert load_model(str(run), "cpu").tokenizer.encode("a", add_special_tokens=False)


def test_our_class_opens_llama_shapes(tiny_model):
    from arch.pangu_pi import PanguPiForCausalLM

    loaded = load_model(str(tiny_model), "cpu")
    assert isinstance(loaded.model, PanguPiForCausalLM) and not loaded.model.training


def test_model_errors_are_one_line(tmp_path):
    with pytest.raises(ModelLoadError, match="there is no such folder"):
        resolve_model(str(tmp_path / "x" / "y"))
    with pytest.raises(ModelLoadError, match=r"neither a model \(config.json, .gguf\) nor a run"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json:1: not JSON"):
        load_model(str(tmp_path))


def test_results_are_the_same_from_a_run_and_from_the_plain_model(tiny_model, tasks, tmp_path):
    run = make_run(tiny_model, tmp_path / "run", [7])
    numbers = [
        flatten(evaluate(str(path), ["held_out"], include_path=tasks, device="cpu")) for path in (tiny_model, run)
    ]
    assert numbers[0] == numbers[1]


def test_unknown_tasks_name_the_nearest(tasks, few_tasks_only):
    with pytest.raises(EvaluationError, match=r"unknown task 'held_out_bpb_fr' \(nearest: held_out_bpb_zh"):
        load_tasks(["held_out_bpb_fr"], include_path=tasks)


@pytest.fixture
def short_model(tiny_model, tmp_path):
    """The model with 16 positions."""
    folder = tmp_path / "short"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_choices(folder, records):
    """A task `choices` of these documents."""
    (folder / "choices.yaml").write_text(
        "task: choices\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/d.jsonl}}}}\ndoc_to_choice: c\ndoc_to_target: 0\n"
        "target_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    (folder / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_does_not_fit_the_model_is_scored_counted_and_shown(short_model, tmp_path):
    write_choices(tmp_path, [{"q": "", "c": ["x" * 40, "y" * 40]}, {"q": "z" * 30, "c": ["a", "b"]}])
    raw = evaluate(str(short_model), ["choices"], include_path=tmp_path, device="cpu")
    assert raw["results"]["choices"]["sample_len"] == 2
    windows, cut = raw["notes"]
    assert windows.startswith("2 choices are longer") and "'" + "x" * 40 + "' after ''" in windows
    assert cut.startswith("2 choices lost the beginning of their context (the model has 16 positions)")
    assert cut.endswith("such as 'a' after 'zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz'")
    assert json.loads(write_results(raw, tmp_path, "lm").read_text())["notes"] == raw["notes"]


def test_a_long_choice_scores_the_sum_of_its_windows(short_model):
    from eval.harness_model import HarnessModel

    loaded = load_model(str(short_model), "cpu")
    harness = HarnessModel(loaded.model, loaded.tokenizer, batch_size=3)
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randint(4, 250, (size,), generator=generator).tolist() for size in (37, 5))
    answers = harness._loglikelihood_tokens([(("q", "c"), [1], long), (("q", "c"), [1], short), (("q", ""), [1], [])])
    expected = 0.0
    for begin, end in ((0, 16), (16, 32), (32, 37)):  # each sees the 16 tokens before its end
        with torch.no_grad():
            logits_SV = loaded.model(torch.tensor([[1, *long][end - 16 : end]])).logits[0, begin - end :]
        expected += float(logits_SV.log_softmax(-1)[range(end - begin), long[begin:end]].sum())
    assert answers[0][0] == pytest.approx(expected, rel=1e-5)
    assert answers[1] == pytest.approx(harness._loglikelihood_tokens([(("q", "c"), [1], short)])[0], rel=1e-5)
    assert answers[2] == (0.0, True)


def test_a_share_of_the_documents(tiny_model, tmp_path):
    write_choices(tmp_path, [{"q": f"{number}", "c": ["a", "b"]} for number in range(20)])
    for limit, documents in ((0.1, 2), (0.01, 1), (3, 3), (None, 20)):
        raw = evaluate(str(tiny_model), ["choices"], include_path=tmp_path, device="cpu", limit=limit)
        assert raw["results"]["choices"]["sample_len"] == documents


def test_an_automatic_batch_is_bounded_on_a_cpu(tiny_model, short_model, tmp_path):
    from eval.harness_model import CPU_LOGITS, HarnessModel

    for folder, positions in ((tiny_model, 8192), (short_model, 16)):
        loaded = load_model(str(folder), "cpu")
        size = HarnessModel(loaded.model, loaded.tokenizer, batch_size="auto").batch_size
        assert size == min(64, CPU_LOGITS // (positions * 260))
    write_choices(tmp_path, [{"q": "q", "c": ["a", "b"]}])
    fixed, found = (
        evaluate(str(short_model), ["choices"], include_path=tmp_path, device="cpu", batch_size=size)["results"]
        for size in (2, "auto")
    )
    assert fixed == found


def test_a_model_that_also_holds_a_gguf_is_read_as_what_it_is(tiny_model, tmp_path):
    """The converted file lies beside the weights in many folders of the hub; it is another, rounded model."""
    folder = tmp_path / "both"
    shutil.copytree(tiny_model, folder)
    (folder / "model.Q4_K_M.gguf").write_bytes(b"GGUF")
    loaded = load_model(str(folder), "cpu")
    ids_BS = torch.tensor([[1, 7, 9]])
    assert torch.equal(loaded.model(ids_BS).logits, load_model(str(tiny_model), "cpu").model(ids_BS).logits)
    assert loaded.tokenizer.encode("a") == load_model(str(tiny_model), "cpu").tokenizer.encode("a")


def test_a_tokenizer_json_alone_is_a_tokenizer(tiny_model, tasks, tmp_path):
    folder = tmp_path / "alone"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer_config.json").unlink()
    whole, alone = (
        flatten(evaluate(str(path), ["held_out"], include_path=tasks, device="cpu")) for path in (tiny_model, folder)
    )
    assert whole == alone


def test_written_results_keep_every_digit(tmp_path):
    raw = {
        "model": "m",
        "results": {
            "g": {"acc,none": 1 / 3, "acc_stderr,none": 0.1, "alias": "g"},
            "t": {"acc,strict": 0.5, "perplexity,none": 1e9, "perplexity_stderr,none": "N/A", "sample_len": 4},
        },
        "group_subtasks": {"g": ["t"]},
    }
    path = write_results(raw, tmp_path / "new", "mine")
    assert json.loads(path.read_text())["results"] == {
        "g": {"acc": 1 / 3, "acc_stderr": 0.1},
        "t": {"acc,strict": 0.5, "perplexity": 1e9},
    }
    assert (tmp_path / "new" / "mine.png").stat().st_size > 1000


def test_the_hook_changes_nothing_in_the_training_run(tiny_model, tasks, tmp_path):
    loaded = load_model(str(tiny_model), "cpu")
    model = loaded.model.train()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    before = [parameter.clone() for parameter in model.parameters()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    hook = LmEvalHook(tasks=["held_out"], every=5, include_path=str(tasks), limit=1)
    first = hook(step=5, model=model, run_directory=tmp_path, context={"tokenizer": loaded.tokenizer})
    shutil.rmtree(tasks)  # the tasks were read once
    assert hook(step=10, model=model, run_directory=tmp_path, context={"tokenizer": loaded.tokenizer}) == first
    assert model.training and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert set(first) == {"held_out_bpb_en", "held_out_bpb_zh", "held_out_continuation"}
    assert json.loads((tmp_path / "eval" / "step_00000005.json").read_text())["results"] == first


def test_the_hook_is_built_from_the_training_yaml():
    from jsonargparse import ArgumentParser

    from pretrain.hooks import EvaluationHook

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--hook", type=EvaluationHook)
    given = {"class_path": "eval.hooks.LmEvalHook", "init_args": {"tasks": ["piqa"], "every": 7}}
    hook = parser.instantiate_classes(parser.parse_object({"hook": given})).hook
    assert isinstance(hook, LmEvalHook) and (hook.every, hook.tasks) == (7, ["piqa"])


def test_the_hook_refuses_folders_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"include_path: .*nowhere is not a folder"):
        LmEvalHook(tasks=["held_out"], include_path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="every is 0"):
        LmEvalHook(tasks=["held_out"], every=0)


def test_command_prints_and_writes(tiny_model, tasks, tmp_path, capsys):
    arguments = ["--model", str(tiny_model), "--include_path", str(tasks), "--device", "cpu", "--output", str(tmp_path)]
    assert main(["lm", "--tasks", "held_out_continuation", *arguments, "--name", "mine"]) == 0
    assert "held_out_continuation" in capsys.readouterr().out
    assert {"acc", "acc_norm"} <= set(
        json.loads((tmp_path / "mine.json").read_text())["results"]["held_out_continuation"]
    )


def test_exit_codes(tmp_path, capsys):
    for arguments in (["lm", "--modle", "x"], ["lm", "--model", "x"], ["nothing"], []):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    capsys.readouterr()
    assert main(["lm", "--model", str(tmp_path / "no" / "model"), "--tasks", "piqa"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("eval lm: model") and "Traceback" not in message


LM = ["lm", "--model", "x", "--tasks", "piqa"]
LIMIT = "--limit must be at least 1 and whole, or a share of the documents below 1"
BATCH_SIZE = "--batch_size must be at least 1, or auto"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*LM, "--limit", "0"], f"{LIMIT}, got 0"),
        ([*LM, "--limit", "1.5"], f"{LIMIT}, got 1.5"),
        ([*LM, "--batch_size", "-2"], f"{BATCH_SIZE}, got -2"),
        ([*LM, "--batch_size", "much"], f"{BATCH_SIZE}, got much"),
        (["held-out", "--data", "x", "--output", "y", "--items", "-1"], "--items must be at least 0, got -1"),
        (["generate", "--model", "nope", "--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["generate", "--model", "nope"], "model 'nope': no exported folder (it has no config.json)"),
    ],
)
def test_impossible_values_are_named(arguments, expected, capsys):
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"eval {arguments[0]}: {expected}\n"


def test_bars_of_prompts_are_hidden_and_come_back(capfd):
    from lm_eval.api import task

    with unnamed_bars_hidden():
        assert list(task.tqdm([1, 2], total=2)) == [1, 2]
    assert capfd.readouterr().err == ""
    assert list(task.tqdm([1, 2], total=2)) == [1, 2]
    assert "2/2" in capfd.readouterr().err
