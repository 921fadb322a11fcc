"""Makes lm-eval tasks that read local files instead of the hub, with upstream's own prompts and metrics.

    upstream YAML (or eval/language/tasks/*.yaml)      local files (--data DIR)
                 \\                                 |  `local_formats`: field names as upstream has them
                  include:                     NAME.SPLIT.jsonl
                        \\                         /
                     OUT/NAME.yaml: include + dataset_path: json + data_files

The folder written is an ordinary lm-eval ``--include_path``; names and groups are upstream's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError
from eval.commands import LocalTasksOptions
from eval.language.local_formats import LOCAL_SOURCES, LocalSource, Record
from eval.language.text_files import read_records

OWN_TASKS = Path(__file__).with_name("tasks")


class LocalDataError(InputError, FileNotFoundError):
    """A task's local file is missing, has a malformed record, or has none for this task."""


def render_local_tasks(names: Sequence[str], data: Path, output: Path, num_fewshot: int | None = None) -> list[str]:
    """Writes the tasks among ``names`` that local files can serve into ``output``.

    Returns those names; the others are left to lm-eval and the hub. ``num_fewshot`` is only checked: upstream draws the
    examples of some tasks from a training split, and without one the evaluated documents would be their own examples.

    Raises:
        LocalDataError: names task and file.
    """
    tasks = LocalTasks(data)
    served = [name for name in names if name in tasks.index]
    output.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(part for top in served for part in tasks.expand(top)):
        config = tasks.render(name, output, num_fewshot)
        if config is not None:
            (output / f"{name}.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return served


class LocalTasks:
    """The tasks, groups and tags of lm-eval and of ``eval/tasks`` that a folder of local files can serve."""

    def __init__(self, data: Path) -> None:
        import lm_eval.tasks

        self.root = data_root(data)
        self.upstream = Path(lm_eval.tasks.__file__).parent
        self.index = self._index()
        self._records: dict[tuple[Path, str | None], dict[str | None, list[Record]]] = {}

    def _index(self) -> Mapping[str, Any]:
        """lm-eval's entry of every name; only of the folders that are needed, because all of them take many seconds."""
        from lm_eval.tasks import TaskManager

        folders = {self._place(source) for source in LOCAL_SOURCES}
        folders = {place.parent if place.suffix == ".yaml" else place for place in folders}
        return TaskManager(include_path=sorted(folders), include_defaults=False).task_index

    def _place(self, source: LocalSource) -> Path:
        """The YAML file, or the folder of YAML files, with the prompts of a source's tasks."""
        return self.upstream / source.upstream if source.upstream else OWN_TASKS

    def expand(self, name: str) -> Iterator[str]:
        """``name`` and everything below it: sub-groups, tags and tasks, depth first."""
        yield name
        entry = self.index.get(name)
        if entry is not None and entry.kind.name == "TAG":
            children = sorted(entry.tags)
        elif entry is not None and entry.kind.name == "GROUP":
            children = [child if isinstance(child, str) else child.get("task", "") for child in entry.cfg["task"]]
        else:
            children = []
        for child in children:
            yield from self.expand(child)

    def source(self, name: str) -> LocalSource:
        """Where a task's local files are."""
        entry = self.index.get(name)
        for source in LOCAL_SOURCES:
            inside = entry is not None and entry.yaml_path.is_relative_to(self._place(source))
            if inside and (not source.tasks or name in source.tasks):
                return source
        raise LocalDataError(f"task {name}: no local files are known for it; leave it out, or leave out --data")

    def render(self, name: str, output: Path, num_fewshot: int | None) -> dict[str, Any] | None:
        """The YAML of one task or group, its data written to ``output``; None for a tag, which its tasks carry."""
        entry = self.index.get(name)
        if entry is not None and entry.kind.name == "TAG":
            return None
        if entry is not None and entry.kind.name == "GROUP":
            return {"include": str(entry.yaml_path)}
        source = self.source(name)
        config = self.index[name].cfg
        if num_fewshot and "training_split" in source.overrides and config.get("num_fewshot") != 0:
            raise LocalDataError(
                f"task {name}: --num_fewshot needs its training split, which {self.root} does not have"
            )
        files = {}
        for split, templates in source.splits.items():
            files[split] = output.resolve() / f"{name}.{split}.jsonl"
            records = self.records(name, source, templates, subset_of(config))
            files[split].write_text(
                "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8"
            )
        return {
            "include": str(self.index[name].yaml_path),
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(path) for split, path in files.items()},
                "cache_dir": str(output.resolve() / ".cache"),
                "keep_in_memory": True,  # the folder may be gone before the task is
            },
            **source.overrides,
        }

    def records(self, name: str, source: LocalSource, templates: Sequence[str], subset: str) -> list[Record]:
        """One split of one task, in upstream's fields."""
        adapted: list[Record] = []
        for template in templates:
            path = self.root / template.format(subset=subset)
            if not path.is_file():
                raise LocalDataError(f"task {name}: {path} is not there")
            for record in self._by_subset(path, source.subset_field).get(subset if source.subset_field else None, []):
                try:
                    adapted += source.adapt(record, subset)
                except (KeyError, TypeError, ValueError) as error:
                    problem = f"{type(error).__name__}: {error}"
                    raise LocalDataError(f"task {name}: {path}: a record is malformed ({problem}): {record}") from None
        if not adapted:
            wanted = f" with {source.subset_field} = {subset!r}" if source.subset_field else ""
            raise LocalDataError(f"task {name}: {path} has no record{wanted}")
        return adapted

    def _by_subset(self, path: Path, subset_field: str | None) -> dict[str | None, list[Record]]:
        """A file's records by subset, read once for all its tasks."""
        key = (path, subset_field)
        if key not in self._records:
            self._records[key] = {}
            for record in read_records(path):
                self._records[key].setdefault(record.get(subset_field) if subset_field else None, []).append(record)
        return self._records[key]


def subset_of(config: Mapping[str, Any]) -> str:
    """What upstream calls a task's part of its data: the data set's configuration, or the end of AGIEval's name."""
    return config.get("dataset_name") or config.get("dataset_path", "").rpartition("agieval-")[2]


def data_root(data: Path) -> Path:
    """The folder that holds the benchmark folders: ``data`` itself or its ``benchmarks``."""
    if not data.is_dir():
        raise LocalDataError(f"--data: {data} is not a folder")
    nested = data / "benchmarks"
    return nested if nested.is_dir() else data


def run(options: LocalTasksOptions) -> None:
    """``python -m eval local-tasks``."""
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    served = render_local_tasks(names, Path(options.data), Path(options.output))
    if left := [name for name in names if name not in served]:
        raise LocalDataError(f"no local files are known for: {', '.join(left)}")
    print(f"{options.output}: {', '.join(served)}")
    print(f"run them: lm_eval --include_path {options.output} --tasks {options.tasks} ...")
