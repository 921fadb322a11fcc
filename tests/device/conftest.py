"""The materials that all cases are made from."""

from __future__ import annotations

import pytest

from tests.pretrain.conftest import make_corpus
from tests.pretrain.task_cases import Materials


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Made-up text, words and images; once for all tests of this folder."""
    folder = tmp_path_factory.mktemp("device")
    return Materials(folder, make_corpus(folder))
