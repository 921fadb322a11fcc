"""A HOME that cannot be written does not end a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.caches import use_writable_caches

VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "TORCH_EXTENSIONS_DIR")
VARIABLES += ("TRITON_CACHE_DIR", "XDG_CACHE_HOME")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOME, and a temporary directory of the test's own; no cache is set."""
    monkeypatch.setattr("os.environ", {name: value for name, value in os.environ.items() if name not in VARIABLES})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    os.environ["HOME"] = str(tmp_path / "home")
    return tmp_path / "home"


def unwritable(folder: Path) -> Path:
    """A place below which nothing can be made, whoever runs the tests."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()
    return folder / "below"


def test_a_home_that_can_be_written_is_left_alone(home, capsys):
    assert use_writable_caches() == {} and not set(VARIABLES) & set(os.environ)
    assert capsys.readouterr().err == ""


def test_every_cache_goes_to_a_folder_of_the_users_own(home, tmp_path, capsys):
    os.environ["HOME"] = str(unwritable(home / "file"))
    os.environ["TRITON_CACHE_DIR"] = "chosen"
    moved = use_writable_caches()
    assert set(moved) == set(VARIABLES) - {"HF_HOME", "TRITON_CACHE_DIR", "XDG_CACHE_HOME"}
    (root,) = (tmp_path / "tmp").iterdir()
    assert all(folder.is_dir() and folder.parent == root for folder in moved.values())
    assert {name: os.environ[name] for name in moved} == {name: str(folder) for name, folder in moved.items()}
    assert root.stat().st_mode & 0o777 == 0o700 and os.environ["TRITON_CACHE_DIR"] == "chosen"
    message = capsys.readouterr().err
    assert "cannot be written" in message and "set HF_HUB_CACHE" in message and str(root) in message
    assert use_writable_caches() == {}, "a second call, or a child process, finds them set"


def test_a_folder_that_others_can_write_is_not_trusted(home, tmp_path):
    os.environ["HOME"] = str(unwritable(home / "file"))
    planted = tmp_path / "tmp" / f"tinypi-caches-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert planted not in {folder.parent for folder in use_writable_caches().values()}


def test_a_hub_cache_that_can_only_be_read_is_read(home, monkeypatch):
    (home / ".cache/huggingface/hub").mkdir(parents=True)
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith(str(home)))
    moved = use_writable_caches()
    assert "HF_HUB_CACHE" not in moved and "HF_DATASETS_CACHE" in moved


@pytest.mark.parametrize("room", ["arch", "tokenizer", "data_pipeline", "eval", "pretrain"])
def test_every_room_asks_before_it_imports_a_library(room):
    """The libraries read the variables when they are imported."""
    program = (
        "import sys\n"
        f"from {room}.__main__ import main\n"
        "import common.door as door\n"
        "door.use_writable_caches = lambda: sys.exit(7)\n"
        "assert not {'datasets', 'huggingface_hub', 'torch', 'triton'} & sys.modules.keys(), 'too late'\n"
        "sys.argv = ['room', 'no such command']\n"
        "main()\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.returncode == 7, child.stderr
