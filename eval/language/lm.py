"""lm-eval on any model of ours or of transformers, with the hub's data sets or with local files.

The model is opened by `eval.models` and handed to lm-eval (`eval.harness_model`); prompts, requests, scoring and
aggregation are lm-eval's, so the numbers of an export are those of
``lm_eval --model hf --model_args pretrained=DIR,trust_remote_code=True``. They differ for a model from elsewhere whose
tokenizer puts bos before every text: lm-eval then puts another one there and scores the first in bits per byte.
What it costs: one forward pass per choice of every document; about 1 s to find the tasks when all are local, and some
10 s to index lm-eval's 14,000 upstream names otherwise.
"""

from __future__ import annotations

import difflib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from eval.commands import LmOptions
from eval.language.local_tasks import render_local_tasks
from eval.models import load_model, resolve_model
from pretrain.errors import ConfigurationError

Results = dict[str, dict[str, float]]


class EvaluationError(ConfigurationError):
    """An evaluation cannot run as asked: an unknown task, or a document that the model cannot take."""


def load_tasks(
    names: Sequence[str],
    data: Path | None = None,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
) -> list[Any]:
    """lm-eval ``Task`` and ``Group`` objects for ``names``, their documents in memory.

    Args:
        names: tasks, groups or tags of upstream, of ``eval/tasks`` (with ``data``) and of ``include_path``.
        data: folder of local benchmark files, used for every task that it can serve.
        include_path: a folder of lm-eval YAML tasks, such as ``python -m eval held-out`` writes.
        num_fewshot: only checked against what the local files can offer.

    Raises:
        EvaluationError: a name that nobody knows, with the nearest ones.
        LocalDataError: a local file is missing or broken.
    """
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise EvaluationError(f"--include_path: {include_path} is not a folder")
    with tempfile.TemporaryDirectory(prefix="tinypi-tasks-") as folder, quiet("lm_eval"):
        rendered = Path(folder)
        if data is not None:
            render_local_tasks(names, data, rendered, num_fewshot)
        folders: list[str | Path] = [rendered, *([include_path] if include_path else [])]
        manager = TaskManager(include_path=folders, include_defaults=False)
        if any(name not in manager.all_tasks for name in names):
            manager = TaskManager(include_path=folders)
        objects: list[Any] = []
        for name in names:
            if name not in manager.all_tasks:
                near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, n=3)) or "see `lm_eval ls tasks`"
                raise EvaluationError(f"unknown task {name!r} (nearest: {near}; ours need --data)")
            loaded = manager.load([name])
            groups = loaded.get("groups", {})
            objects += [groups[name]] if name in groups else list(loaded["tasks"].values())
    grouped = {task.task_name for item in objects if isinstance(item, Group) for task in item.get_all_tasks()}
    # lm-eval refuses a task that is also inside a group; its numbers come with the group's anyway.
    return [item for item in objects if isinstance(item, Group) or item.task_name not in grouped]


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Only errors from these loggers, and no bar per data file.

    lm-eval warns about every default and about every model that is already in memory.
    """
    from datasets import disable_progress_bars, enable_progress_bars

    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def unnamed_bars_hidden() -> Iterator[None]:
    """No bar for each task's prompts: lm-eval shows one without a name before the one that matters, of its requests."""
    from lm_eval.api import task

    module: Any = task
    shown = module.tqdm
    module.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        module.tqdm = shown


def evaluate_model(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Any],
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    batch_size: int | str = 1,
    bootstrap_iters: int = 100_000,
    seed_generators: bool = True,
) -> dict[str, Any]:
    """lm-eval's raw results for a model in memory, and under ``notes`` what did not fit the model.

    Args:
        model, tokenizer: transformers objects; the model is left in eval mode.
        tasks: from `load_tasks`.
        limit: documents per task, or the share of them where it is below 1.
        batch_size: sequences per forward pass, or ``auto``.
        bootstrap_iters: resamplings for the standard errors that have no closed form; 0 leaves those out.
        seed_generators: seeds Python's, NumPy's and torch's global generators, as the lm-eval command does.

    Raises:
        EvaluationError: lm-eval refuses a document, or the tokenizer has nothing to put before a text.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from eval.harness_model import HarnessModel

    with quiet("lm_eval.models.huggingface"):
        try:
            language_model = HarnessModel(model, tokenizer, batch_size)
        except ValueError as error:
            raise EvaluationError(str(error)) from None
    # lm-eval's own defaults, spelled out because None would mean "do not seed".
    seeds = (0, 1234, 1234) if seed_generators else (None, None, None)
    try:
        with (
            unnamed_bars_hidden(),
            quiet("lm_eval.models.huggingface"),
        ):  # it warns of every context that it cuts; `notes` counts them
            raw = simple_evaluate(
                model=language_model,
                tasks=list(tasks),
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=num_fewshot,
                limit=limit,
                bootstrap_iters=bootstrap_iters,
                log_samples=False,
                random_seed=seeds[0],  # type: ignore[arg-type]
                numpy_random_seed=seeds[1],  # type: ignore[arg-type]
                torch_random_seed=seeds[2],  # type: ignore[arg-type]
            )
    except AssertionError as error:
        raise EvaluationError(f"lm-eval refused a document: {str(error) or 'it says no more'}") from error
    return {**(raw or {"results": {}}), "notes": language_model.notes()}


def flatten(raw: dict[str, Any]) -> Results:
    """lm-eval's results as {task: {metric: value}}; ``acc,none`` becomes ``acc``, other filters keep their name."""
    flat: Results = {}
    for task, metrics in raw["results"].items():
        numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float)) and "," in key}
        flat[task] = {key.removesuffix(",none"): float(value) for key, value in numbers.items()}
    return {task: metrics for task, metrics in flat.items() if metrics}


def evaluate(
    model_path: str,
    tasks: Sequence[str],
    *,
    data: str | Path | None = None,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
    batch_size: int | str = 1,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    bootstrap_iters: int = 100_000,
) -> dict[str, Any]:
    """Evaluates a model on disk; lm-eval's raw results plus ``model`` and ``seconds``. Arguments: see `LmOptions`.

    Raises:
        ModelLoadError, EvaluationError, LocalDataError: with what is wrong and where.
    """
    started = time.perf_counter()
    resolve_model(model_path)  # a mistyped path should not first wait for the tasks
    objects = load_tasks(tasks, Path(data) if data else None, Path(include_path) if include_path else None, num_fewshot)
    loaded = load_model(model_path, device, trust_remote_code, dtype)
    raw = evaluate_model(
        loaded.model,
        loaded.tokenizer,
        objects,
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        bootstrap_iters=bootstrap_iters,
    )
    return {"model": loaded.source, "limit": limit, "seconds": round(time.perf_counter() - started, 1), **raw}


def write_results(raw: dict[str, Any], directory: Path, name: str) -> Path:
    """NAME.json with every number in full precision, and NAME.png. Returns the JSON's path."""
    from eval.plots import save_result_bars

    directory.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {
        key: raw[key]
        for key in ("model", "limit", "seconds", "notes", "n-shot", "n-samples", "versions", "group_subtasks")
        if key in raw
    }
    kept["results"] = flatten(raw)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")
    members = {task for group in raw.get("group_subtasks", {}).values() for task in group}
    save_result_bars(kept["results"], members, path.with_suffix(".png"))
    return path


def run(options: LmOptions) -> None:
    """``python -m eval lm``."""
    from lm_eval.utils import make_table

    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    raw = evaluate(
        options.model,
        names,
        data=options.data,
        include_path=options.include_path,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        batch_size=options.batch_size,
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    print(make_table(raw))
    if raw.get("groups"):
        print(make_table(raw, "groups"))
    for note in raw["notes"]:
        print(f"note: {note}")
    directory = Path(options.output) if options.output else _run_directory(options.model)
    if directory is not None:
        print(f"written: {write_results(raw, directory, options.name)}")


def _run_directory(model: str) -> Path | None:
    """RUN/eval when ``model`` is a run directory."""
    run_directory = Path(model)
    return run_directory / "eval" if (run_directory / "checkpoints").is_dir() else None
