"""Local benchmark files: where each task finds its records, and how a record becomes the one upstream's prompt reads.

lm-eval's tasks read data sets from the hub. A folder of local files (``--data DIR``) carries the same items, some in
other field names. A `LocalSource` names, for one family of tasks, lm-eval's own YAML (prompts and metrics stay there),
the local files per split, and the function that turns one local record into upstream records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]

LETTERS = "ABCDEFG"
# English sets of AGIEval; the others are asked in Chinese (dataset_loader.py of the AGIEval repository).
AGIEVAL_ENGLISH = frozenset(
    {"aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc"}
    | {"math", "sat-en", "sat-en-without-passage", "sat-math"}
)


def unchanged(record: Record, subset: str | None) -> Iterator[Record]:
    """The local record already has upstream's fields."""
    yield record


def from_cmmlu(record: Record, subset: str | None) -> Iterator[Record]:
    """The hub data set writes ``Question`` and ``Answer`` in capitals."""
    yield {**record, "Question": record["question"], "Answer": record["answer"]}


def from_arc(record: Record, subset: str | None) -> Iterator[Record]:
    """AI2's nested question becomes the hub's flat one: ``question``, ``choices.text``, ``choices.label``."""
    choices = record["question"]["choices"]
    yield {
        "id": record["id"],
        "question": record["question"]["stem"],
        "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]},
        "answerKey": record["answerKey"],
    }


def from_boolq(record: Record, subset: str | None) -> Iterator[Record]:
    """The label is 0 or 1 upstream (SuperGLUE), ``"false"``/``"true"`` or a boolean in the official file."""
    yield {**record, "label": int(str(record["label"]).lower() == "true")}


def from_lambada(record: Record, subset: str | None) -> Iterator[Record]:
    """Upstream splits the passage at its last space; the local file has it split."""
    yield {"text": f"{record['context']} {record['continuation']}"}


def from_hellaswag(record: Record, subset: str | None) -> Iterator[Record]:
    """Upstream's processed document from a file of processed queries that lacks upstream's capitalisation.

    Upstream joins ``ctx_a`` and ``ctx_b.capitalize()``. ``ctx_b`` is empty for the WikiHow items, which all end in a
    full stop, and else is the unfinished sentence at the end of the query, so its capital is restored here.
    """
    query = record["query"]
    if not query.endswith("."):
        finished, stop, fragment = query.rpartition(". ")
        query = finished + stop + fragment.capitalize()
    yield {"query": query, "choices": record["endings"], "gold": int(record["label"]), "label": str(record["label"])}


def from_agieval(record: Record, subset: str | None) -> Iterator[Record]:
    """The hub's ``query``, ``choices`` and ``gold``, made by AGIEval's ``convert_zero_shot`` (arXiv 2304.06364).

    ``gold`` is a list because some Chinese questions have several right answers, written ``["A", "C"]`` or ``"A C"``.
    One law question has none; nothing is right there, as upstream scores it.
    """
    english = subset in AGIEVAL_ENGLISH
    passage = record["passage"] or ""
    question = f"{passage}Q: {record['question']}" if english else f"{passage}问题：{record['question']}"
    if record["options"] is None:
        yield {"query": question + ("\nA: The answer is" if english else "\n答案："), "answer": record["answer"]}
        return
    options, last = " ".join(record["options"]), LETTERS[len(record["options"]) - 1]
    tail = (
        f" Answer Choices: {options}\nA: Among A through {last}, the answer is"
        if english
        else f" 选项：{options}\n答案：从A到{last}, 我们应选择"
    )
    gold = [LETTERS.index(letter) for letter in record["label"] if letter in LETTERS]
    yield {"query": question + tail, "choices": record["options"], "gold": gold}


def from_c3(record: Record, subset: str | None) -> Iterator[Record]:
    """One record per question of a dialogue or passage, which is joined as OpenCompass joins it (``C3Dataset``)."""
    for question in record["questions"]:
        yield {
            "content": " ".join(record["context"]),
            "question": question["question"],
            "choices": question["choice"],
            "label": question["choice"].index(question["answer"]),
        }


def from_csl(record: Record, subset: str | None) -> Iterator[Record]:
    """Keywords joined by the full-width comma, the label as a number (OpenCompass ``CslDataset``)."""
    yield {"abst": record["abst"], "keywords": "，".join(record["keyword"]), "label": int(record["label"])}


@dataclass(frozen=True)
class LocalSource:
    """One family of tasks and its local files."""

    upstream: str
    """Folder or YAML file with the tasks, relative to lm-eval's ``tasks`` folder; empty for those in ``eval/tasks``."""
    splits: Mapping[str, tuple[str, ...]]
    """Split name -> files relative to the data folder. ``{subset}`` stands for the task's subset."""
    adapt: Callable[[Record, str | None], Iterator[Record]] = unchanged
    """Turns one local record into upstream records."""
    subset_field: str | None = None
    """Field that names the subset a record belongs to, when one file holds several tasks."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Task fields that differ from upstream because of the data, such as a training split that is not there."""
    tasks: tuple[str, ...] = ()
    """Restricts the family to these task names; empty means all tasks found under ``upstream``."""


NO_TRAIN: Mapping[str, Any] = {"training_split": None}

LOCAL_SOURCES: tuple[LocalSource, ...] = (
    LocalSource("ceval", {"val": ("ceval/val.jsonl.gz",), "dev": ("ceval/dev.jsonl.gz",)}, subset_field="subject"),
    LocalSource(
        "cmmlu",
        {"test": ("cmmlu/test.jsonl.gz",), "dev": ("cmmlu/dev.jsonl.gz",)},
        from_cmmlu,
        subset_field="subject",
    ),
    LocalSource(
        "mmlu/default", {"test": ("mmlu/test.jsonl.gz",), "dev": ("mmlu/dev.jsonl.gz",)}, subset_field="subject"
    ),
    LocalSource("agieval", {"test": ("agieval/{subset}.jsonl.gz",)}, from_agieval),
    LocalSource(
        "super_glue/boolq/default.yaml",
        {"validation": ("boolq/validation.jsonl.gz",)},
        from_boolq,
        overrides=NO_TRAIN,
    ),
    LocalSource("piqa/piqa.yaml", {"validation": ("piqa/validation.jsonl.gz",)}, overrides=NO_TRAIN),
    LocalSource(
        "arc/arc_easy.yaml",
        {"test": ("arc_easy/test.jsonl.gz",), "validation": ("arc_easy/validation.jsonl.gz",)},
        from_arc,
        overrides=NO_TRAIN,
    ),
    LocalSource(
        "hellaswag/hellaswag.yaml",
        {"validation": ("hellaswag/validation.jsonl.gz",)},
        from_hellaswag,
        # The file holds what upstream's process_docs makes; running it again would look for ctx_a and ctx_b.
        overrides={**NO_TRAIN, "process_docs": None},
    ),
    LocalSource("lambada/lambada_openai.yaml", {"test": ("lambada_openai/test.jsonl.gz",)}, from_lambada),
    LocalSource("blimp", {"train": ("blimp/blimp.jsonl.gz",)}, subset_field="UID"),
    LocalSource("", {"test": ("superglue_ax_b/test.jsonl.gz",)}, tasks=("ax_b",)),
    LocalSource("", {"test": ("c3/c3-m-dev.jsonl.gz", "c3/c3-d-dev.jsonl.gz")}, from_c3, tasks=("c3",)),
    LocalSource("", {"test": ("fewclue_csl/dev_few_all.jsonl.gz",)}, from_csl, tasks=("csl",)),
    LocalSource("", {"test": ("fewclue_csl/test_public.jsonl.gz",)}, from_csl, tasks=("csl_test",)),
    LocalSource("", {"test": ("fewclue_eprstmt/dev_few_all.jsonl.gz",)}, tasks=("eprstmt",)),
    LocalSource("", {"test": ("fewclue_eprstmt/test_public.jsonl.gz",)}, tasks=("eprstmt_test",)),
    LocalSource("", {"test": ("xsum/validation_public.jsonl.gz",)}, tasks=("xsum",)),
    LocalSource("", {"test": ("lcsts/test_public.jsonl.gz",)}, tasks=("lcsts",)),
)
