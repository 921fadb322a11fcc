"""The victim of the long form: a small PanGu-pi that learns text."""

from __future__ import annotations

from pretrain.tasks import LanguageModelTask
from tests.faults.victim import Wounded


class WoundedLanguageModel(Wounded, LanguageModelTask):
    """Trains a language model."""
