"""The tasks that the trainer can train. `Task` is the interface; each other file is one task.

base.py              Task, LossOutput, TaskModule
language_model.py    LanguageModelTask: packed text, chunked cross-entropy
word_recognition.py  WordRecognitionTask: PARSeq on word images
clip4str.py          Clip4StrTask: CLIP4STR on the same
"""

import importlib
from typing import Any

_HOMES = {
    "Clip4StrTask": "clip4str",
    "LanguageModelTask": "language_model",
    "LossOutput": "base",
    "Task": "base",
    "TaskModule": "base",
    "WordRecognitionTask": "word_recognition",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a run imports only the models of its own task."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pretrain.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
