"""The tasks that the trainer can train. `Task` is the interface; each other file is one task.

base.py              Task, LossOutput, TaskModule
decoder.py           DecoderTask: what next-token tasks share, a teacher among it
language_model.py    LanguageModelTask: packed text
visual_sentences.py  VisualSentenceTask: sentences of images, factorised through a codebook
word_recognition.py  WordRecognitionTask: PARSeq on word images
"""

import importlib
from typing import Any

_HOMES = {
    "DecoderTask": "decoder",
    "LanguageModelTask": "language_model",
    "LossOutput": "base",
    "Task": "base",
    "TaskModule": "base",
    "VisualSentenceTask": "visual_sentences",
    "WordRecognitionTask": "word_recognition",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a run imports only the models of its own task."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pretrain.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
