"""The materials that all cases are made from, and a device to run them on."""

from __future__ import annotations

import pytest

from tests.device.pretended import PretendedDevice
from tests.device.stand_ins import stand_in
from tests.pretrain.conftest import make_corpus
from tests.pretrain.task_cases import Materials


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Made-up text, words and images; once for all tests of this folder."""
    folder = tmp_path_factory.mktemp("device")
    return Materials(folder, make_corpus(folder))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> PretendedDevice:
    """A pretended device that has the kernels of attention that CUDA has."""
    made = PretendedDevice()
    stand_in(monkeypatch, made)
    return made
