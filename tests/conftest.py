"""Shared fixtures. The suite runs offline, on the CPU, and without the optional real data beside the checkout."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processor import pretend_processor

pytest_plugins = ["tests.trained"]

pretend_processor()

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With workers, files with launches come first: at the end, one of them would keep a worker alone for minutes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("distributed")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell's background job ignores Ctrl-C, and so would every process that the tests mean to interrupt."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
def _hears_signals(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says which test leaves signals held back: one sent later would come when Python's own handlers are back, and end
    the worker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    after = signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert after == before, f"{request.node.nodeid} left {sorted(after)} held back, before it were {sorted(before)}"


@pytest.fixture
def real_data() -> Path:
    """The folder of real corpora and benchmarks that developers keep beside the checkout; the test skips without it."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data not found beside the checkout ({REAL_DATA.name})")
    return REAL_DATA
