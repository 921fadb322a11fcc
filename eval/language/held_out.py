"""Makes lm-eval tasks out of held-out text, so that a run is evaluated without any hub.

    SPLIT.LANGUAGE.jsonl  ->  held_out_bpb_LANGUAGE   bits per byte of whole documents (loglikelihood_rolling)
                          ->  held_out_continuation   which of four texts continues this passage? (acc, acc_norm)
                          ->  held_out                the group of all of them

The folder holds ordinary YAML and JSON Lines files: ``lm_eval --include_path DIR --tasks held_out`` runs them too. The
YAML names its data by absolute path, because lm-eval resolves paths against the working directory.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError
from common.folder_files import find_files
from eval.commands import HeldOutOptions
from eval.language.text_files import read_texts
from tokenizer.inputs.broken_text import BrokenText
from tokenizer.inputs.documents import SUFFIXES

CHOICES = 4
# Characters of passage and continuation; a Chinese character carries about what three Latin letters do.
LATIN_SIZES, CJK_SIZES = (240, 72), (80, 24)


class HeldOutError(InputError, ValueError):
    """The folder has no held-out text, or too little."""


def find_documents(data: Path, split: str, broken_text: BrokenText = "skip") -> dict[str, list[str]]:
    """Texts by language from the files ``SPLIT.LANGUAGE.*`` of a folder that can be read, or from the file ``data``,
    whose language is its name. Raises `HeldOutError` if there are none."""
    found: dict[str, list[str]] = {}
    if data.is_dir():
        files = find_files(data, SUFFIXES, deep=False).files
        parts = {path: path.name.split(".") for path in files if path.name.startswith(f"{split}.")}
        named = {path: names[1] for path, names in parts.items() if len(names) > 2}
    else:
        named = {data: data.name.split(".")[0]}
    for path, language in named.items():
        found.setdefault(language, []).extend(read_texts(path, broken_text))
    if not any(found.values()):
        raise HeldOutError(f"{data}: no documents in {split}.LANGUAGE.jsonl files; is this the folder `sample` wrote?")
    return {language: texts for language, texts in sorted(found.items()) if texts}


def sizes(text: str) -> tuple[int, int]:
    """Passage and continuation length in characters, by script."""
    cjk = sum("\u4e00" <= c <= "\u9fff" for c in text)
    return CJK_SIZES if cjk > 0.2 * len(text) else LATIN_SIZES


def cut(text: str, start: int, length: int) -> tuple[int, int]:
    """``[start, start + length)`` moved forward to word boundaries where words are separated by spaces."""

    def boundary(index: int) -> int:
        space = text.find(" ", index, index + 40)
        return index if space < 0 else space

    begin = boundary(start)
    return begin, boundary(min(begin + length, len(text)))


def continuation_items(texts: Sequence[str], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Questions with one true continuation and three of the same length from elsewhere in the same language.

    Fewer than ``count`` when the text is too short for that many. ``context`` ends where the choices begin, so a choice
    starts with the space that separates it.
    """
    long_enough = [text for text in texts if len(text) > 3 * sum(sizes(text))]
    items: list[dict[str, Any]] = []
    for _ in range(count if long_enough else 0):
        text = rng.choice(long_enough)
        passage, continuation = sizes(text)
        begin, middle = cut(text, rng.randrange(len(text) - passage - 2 * continuation), passage)
        _, end = cut(text, middle, continuation)
        true = text[middle:end]
        choices = [true]
        while len(choices) < CHOICES:
            other = rng.choice(long_enough)
            first, last = cut(other, rng.randrange(len(other) - continuation - 80), continuation)
            overlaps = other is text and first < end and last > begin
            if not overlaps and other[first:last] not in choices:
                choices.append(other[first:last])
        rng.shuffle(choices)
        items.append({"context": text[begin:middle].lstrip(), "choices": choices, "label": choices.index(true)})
    return items


def make_tasks(options: HeldOutOptions) -> list[str]:
    """Writes the tasks and returns their names, the group last.

    Raises:
        HeldOutError: no usable text. TextFileError: a damaged file, with its line.
    """
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    names, questions = [], []
    for language, texts in find_documents(Path(options.data), options.split, options.broken_text).items():
        rng = random.Random(f"{options.seed}/{language}")
        chosen = rng.sample(texts, min(options.documents, len(texts)))
        name = f"held_out_bpb_{language}"
        rolling = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        }
        _write(output, name, rolling, [{"text": text[: options.characters]} for text in chosen])
        names.append(name)
        questions += continuation_items(texts, options.items, rng)
    if questions:
        choosing = {
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
            ],
        }
        _write(output, "held_out_continuation", choosing, questions)
        names.append("held_out_continuation")
    group = {"group": "held_out", "task": names}
    (output / "held_out.yaml").write_text(yaml.safe_dump(group, sort_keys=False), encoding="utf-8")
    return [*names, "held_out"]


def _write(output: Path, name: str, config: dict[str, Any], records: list[dict[str, Any]]) -> None:
    data = output / f"{name}.jsonl"
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "num_fewshot": 0,
        **config,
        "metadata": {"version": 1.0},
    }
    (output / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True), encoding="utf-8")


def run(options: HeldOutOptions) -> None:
    """``python -m eval held-out``."""
    names = make_tasks(options)
    print(f"{options.output}: {', '.join(names)}")
    print(f"run them: python -m eval lm --model RUN --include_path {options.output} --tasks held_out")
