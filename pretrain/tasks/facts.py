"""What a task declares of itself beside its loss, so that no table elsewhere lists tasks by name.

A run keeps them as plain data in RUN/task.json, written when it starts: reports read that and import nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.atomic_files import write_json
from common.untrusted_files import read_json, typed

if TYPE_CHECKING:
    from pretrain.tasks.base import Task

NAME = "task.json"
UNDECLARED = "undeclared"
"""Of a task that does not say whether it has a measurement."""
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Suggestion:
    """Something to try next after a run: why, and a command that can be pasted.

    In both, `{run}`, `{checkpoint}` (the newest), `{train}` (the command that continues the run) and `{held_out}` (the
    first held-out source of the configuration) are filled in.
    """

    reason: str
    command: str
    unless_evaluated: bool = False
    """Whether it is left out where the run has an evaluation already."""


@dataclass(frozen=True)
class Facts:
    """The content of task.json."""

    task: str
    """Import path of the class."""
    kind: str = "model"
    """What is trained, in a word or two."""
    text_samples: bool = False
    """Whether a complete run has samples.json, generated text."""
    suggestions: list[Suggestion] | None = None
    """None: the task declares none."""
    more_data: str = ""
    """The command that makes more of what it is trained on."""
    measurement: str | None = field(default=UNDECLARED)
    """`module:function` that measures more of a trained cell; None: its validation says everything."""


def facts_of(task: type[Task] | Task) -> Facts:
    """What a task, or its class, declares."""
    kind = task if isinstance(task, type) else type(task)
    return Facts(
        f"{kind.__module__}.{kind.__qualname__}",
        task.kind,
        task.text_samples,
        None if task.suggestions is None else list(task.suggestions),
        task.more_data,
        task.measurement,
    )


def write_facts(task: Task, run: Path) -> None:
    """Writes RUN/task.json."""
    write_json(run / NAME, asdict(facts_of(task)))


def read_facts(run: Path, class_path: str) -> Facts:
    """The facts of a run. Of one from before there was task.json, those of our own class of that name.

    Raises:
        ValueError: task.json is no such file.
    """
    path = run / NAME
    if path.is_file():
        return typed(Facts, read_json(path, ValueError), f"{path}: not the facts of a task", ValueError)
    from pretrain import tasks

    own, name = class_path.startswith("pretrain.tasks."), class_path.rpartition(".")[2]
    return facts_of(getattr(tasks, name)) if own and name in tasks.__all__ else Facts(class_path)


def check_declared(task: Task) -> str:
    """Says what is wrong with what a task declares; an empty string if nothing is. Imports no function."""
    name, declared = type(task).__name__, task.measurement
    if declared is None or declared == UNDECLARED:
        return ""
    if not isinstance(declared, str) or not FUNCTION.fullmatch(declared):
        return f"measurement of {name} is {declared!r}; it must be 'module:function'"
    module = declared.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    return "" if found else f"measurement of {name} is {declared!r}, but there is no module {module}"


def declared_function(task: Task) -> Callable[..., dict[str, Any]] | None:
    """The function that measures more of a task's trained cells, if it declares one.

    Raises:
        ValueError: it declares one that is not there.
    """
    if task.measurement is None or task.measurement == UNDECLARED:
        return None
    if problem := check_declared(task):
        raise ValueError(problem)
    module, _, name = task.measurement.partition(":")
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ValueError(f"measurement of {type(task).__name__} is {task.measurement!r}, but {module} has no {name}()")
    return found
