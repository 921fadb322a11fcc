"""Tasks on local files ask what upstream's ask: upstream's own YAML, on hand-made hub documents, is the judge."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from eval.__main__ import main
from eval.language.lm import evaluate_model, flatten, load_tasks
from eval.language.local_formats import LOCAL_SOURCES
from eval.language.local_tasks import LocalDataError, data_root, render_local_tasks
from eval.language.tasks.rouge import CharacterTokenizer, lcsts_results, xsum_results
from eval.language.text_files import TextFileError, read_records
from eval.models import load_model

UPSTREAM = Path(lm_eval.tasks.__file__).parent
CASES = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text(encoding="utf-8"))
UPSTREAM_CASES, OWN_CASES = CASES["upstream"], CASES["own"]


def write_files(folder: Path, files: dict[str, list[dict[str, Any]]]) -> Path:
    for name, records in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return folder


def upstream_task(yaml_path: str, documents: list[dict[str, Any]]) -> ConfigurableTask:
    """Upstream's own task on documents given here instead of the hub's."""
    splits = {split: datasets.Dataset.from_list(documents) for split in ("train", "validation", "val", "test", "dev")}
    config = load_yaml(UPSTREAM / yaml_path) | {"custom_dataset": lambda **_: splits}
    for key in ("tag", "group"):
        config.pop(key, None)
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("name", UPSTREAM_CASES)
def test_prompts_and_metrics_are_upstreams(name, tmp_path):
    case = UPSTREAM_CASES[name]
    (ours,) = load_tasks([name], write_files(tmp_path, case["files"]))
    theirs = upstream_task(case["yaml"], case["hub"])
    assert len(ours.eval_docs) == len(theirs.eval_docs) == len(case["hub"])
    for our_doc, their_doc in zip(ours.eval_docs, theirs.eval_docs, strict=True):
        assert ours.fewshot_context(our_doc, 0) == theirs.fewshot_context(their_doc, 0)
        assert ours.doc_to_target(our_doc) == theirs.doc_to_target(their_doc)
        if theirs.OUTPUT_TYPE == "multiple_choice":
            choices = ours.doc_to_choice(our_doc)
            assert choices == theirs.doc_to_choice(their_doc)
            for best in range(len(choices)):
                answers = [(-1.0 if choice == best else -2.0, False) for choice in range(len(choices))]
                assert ours.process_results(our_doc, answers) == theirs.process_results(their_doc, answers)
    same = ["output_type", "metric_list", "description", "target_delimiter", "fewshot_delimiter", "generation_kwargs"]
    for key in same:
        assert getattr(ours.config, key) == getattr(theirs.config, key), key


def test_few_shot_examples_come_from_the_dev_split(tmp_path):
    (task,) = load_tasks(
        ["mmlu_anatomy"], write_files(tmp_path, UPSTREAM_CASES["mmlu_anatomy"]["files"]), num_fewshot=1
    )
    task.set_fewshot_seed(0)
    prompt = task.fewshot_context(task.eval_docs[0], 1)
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\nExample\nA. 5"
    )
    assert "Answer: D\n\nWhere?" in prompt


@pytest.mark.parametrize("name", OWN_CASES)
def test_prompts_of_tasks_that_upstream_lacks(name, tmp_path):
    case = OWN_CASES[name]
    (source,) = [source for source in LOCAL_SOURCES if name in source.tasks]
    write_files(tmp_path, {path: [case["record"]] for paths in source.splits.values() for path in paths})
    (task,) = load_tasks([name], tmp_path)
    doc = task.eval_docs[0]
    assert task.fewshot_context(doc, 0) == case["prompt"]
    assert task.doc_to_target(doc) == case["target"]
    if case["choices"] is not None:
        assert task.doc_to_choice(doc) == case["choices"]


def test_groups_aggregate_as_upstream(tmp_path):
    """The group's YAML is upstream's, so are its members and the way they are weighted."""
    from lm_eval.config.group import GroupConfig

    subsets = [path.stem for path in (UPSTREAM / "blimp").glob("[a-z]*.yaml")]
    records = [{"sentence_good": "a", "sentence_bad": "b", "UID": subset} for subset in subsets]
    (group,) = load_tasks(["blimp"], write_files(tmp_path, {"blimp/blimp.jsonl.gz": records}))
    upstream = load_yaml(UPSTREAM / "blimp/_blimp.yaml", resolve_func=False)
    assert group.child_names == upstream["task"] and len(group.child_names) == 67
    ours = [(m.metric, m.aggregation, m.weight_by_size) for m in group.aggregate_metric_list]
    theirs = GroupConfig(**upstream).aggregate_metric_list
    assert ours == [(m.metric, m.aggregation, m.weight_by_size) for m in theirs]


def test_the_folder_is_an_ordinary_include_path(tmp_path):
    data = write_files(tmp_path / "data", UPSTREAM_CASES["piqa"]["files"])
    assert render_local_tasks(["piqa", "winogrande"], data, tmp_path / "tasks") == ["piqa"]
    task = TaskManager(include_path=tmp_path / "tasks", include_defaults=False).load(["piqa"])["tasks"]["piqa"]
    assert task.doc_to_text(task.eval_docs[0]) == "Question: Boil water\nAnswer:"


def test_the_folder_above_benchmarks_is_accepted(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    assert data_root(tmp_path) == data_root(tmp_path / "benchmarks") == tmp_path / "benchmarks"


def test_errors_name_task_and_file(tmp_path):
    data = write_files(tmp_path / "data", UPSTREAM_CASES["mmlu_anatomy"]["files"] | UPSTREAM_CASES["piqa"]["files"])
    out = tmp_path / "out"
    with pytest.raises(LocalDataError, match=r"task boolq: .*boolq/validation\.jsonl\.gz is not there"):
        render_local_tasks(["boolq"], data, out)
    with pytest.raises(
        LocalDataError, match=r"task mmlu_virology: .*test\.jsonl\.gz has no record with subject = 'virology'"
    ):
        render_local_tasks(["mmlu_virology"], data, out)
    with pytest.raises(LocalDataError, match=r"task arc_challenge: no local files are known"):
        render_local_tasks(["ai2_arc"], data, out)
    with pytest.raises(LocalDataError, match=r"task piqa: --num_fewshot needs its training split"):
        render_local_tasks(["piqa"], data, out, num_fewshot=5)
    with pytest.raises(LocalDataError, match=r"is not a folder"):
        render_local_tasks(["piqa"], tmp_path / "nowhere", out)
    write_files(data, {"cmmlu/test.jsonl.gz": [{"subject": "agronomy", "question": "?"}], "cmmlu/dev.jsonl.gz": []})
    with pytest.raises(
        LocalDataError, match=r"cmmlu_agronomy: .*test\.jsonl\.gz: a record is malformed .KeyError: 'answer'"
    ):
        render_local_tasks(["cmmlu_agronomy"], data, out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"bad\.jsonl:2: not JSON"),
        (b'{"a": 1}\n\n[1]\n', r"bad\.jsonl:3: not a JSON object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"bad\.jsonl:2: not UTF-8"),
    ],
)
def test_damaged_files_name_the_line(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(TextFileError, match=message):
        list(read_records(tmp_path / "bad.jsonl"))


def test_a_cut_off_archive_says_so(tmp_path):
    whole = gzip.compress(b'{"a": 1}\n' * 5000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TextFileError, match=r"cut\.jsonl\.gz: damaged after line \d+"):
        list(read_records(tmp_path / "cut.jsonl.gz"))


def test_command_writes_tasks_and_refuses_unknown_names(tmp_path, capsys):
    data = write_files(tmp_path / "data", UPSTREAM_CASES["piqa"]["files"])
    arguments = ["--data", str(data), "--output", str(tmp_path / "tasks")]
    assert main(["local-tasks", "--tasks", "piqa", *arguments]) == 0
    assert "lm_eval --include_path" in capsys.readouterr().out
    assert main(["local-tasks", "--tasks", "piqa,winogrande", *arguments]) == 1
    assert capsys.readouterr().err == "eval local-tasks: no local files are known for: winogrande\n"


def test_rouge_counts_characters_in_chinese_and_words_in_english():
    assert CharacterTokenizer().tokenize("GDP增长3.5%，好!") == ["gdp", "增", "长", "3", "5", "好"]
    assert lcsts_results({"summary": "银行发声"}, ["“银行发声。”\n更多"])["rouge1"] == pytest.approx(1.0)
    scores = lcsts_results({"summary": "甲乙丙丁"}, ["1. 甲乙戊"])
    precision, recall = 2 / 3, 2 / 4
    assert scores["rouge1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert xsum_results({"summary": "the cat sat"}, ["\n The cat sat\nand more"])["rougeL"] == pytest.approx(1.0)
    assert xsum_results({"summary": "the cat sat"}, [""])["rouge1"] == 0.0


NAMED = [
    *("mmlu_anatomy", "cmmlu_agronomy", "ceval-valid_law", "agieval_sat_math", "agieval_gaokao_mathcloze", "boolq"),
    *("ax_b", "piqa", "csl", "csl_test", "eprstmt", "eprstmt_test", "xsum", "lcsts", "c3", "arc_easy", "hellaswag"),
    *("lambada_openai", "blimp_adjunct_island"),
]
GROUPS = {"mmlu": 57, "cmmlu": 67, "ceval-valid": 52, "agieval": 21, "blimp": 67}


@pytest.mark.slow
def test_every_benchmark_runs_on_real_data(real_data, tiny_model):
    loaded = load_model(str(tiny_model), "cpu")
    loaded.model.generation_config.max_length = 8192
    tasks = load_tasks(NAMED, real_data)
    results = flatten(evaluate_model(loaded.model, loaded.tokenizer, tasks, limit=1, batch_size=2, bootstrap_iters=0))
    assert set(results) == set(NAMED)
    assert all(math.isfinite(value) for metrics in results.values() for value in metrics.values())


@pytest.mark.slow
def test_groups_find_a_file_for_every_subject(real_data, tmp_path):
    render_local_tasks(list(GROUPS), real_data, tmp_path)
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    assert len(manager.all_subtasks) == sum(GROUPS.values())
    assert set(GROUPS) <= set(manager.all_groups)
    lines = {
        name: sum(1 for f in tmp_path.glob(f"{name}_*.test.jsonl") for _ in f.open()) for name in ("mmlu", "cmmlu")
    }
    assert lines == {"mmlu": 14042, "cmmlu": 11582}
