"""Where libraries keep what they download and compile, when the usual place under HOME cannot be written.

Containers and clusters give users a HOME that is missing or read-only. datasets, triton and torch then fail at their
first file, deep inside a command; a folder of the user's own in the system's temporary directory serves as well.

Imports neither torch nor transformers: the libraries read these variables when they are imported.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path


def use_writable_caches() -> dict[str, Path]:
    """Points every cache that could not be written to a folder that can, and says so once on stderr.

    What the user has set stays, and so does a hub cache that is there but read-only, because it can be read.

    Returns:
        The environment variables that were set.
    """
    home = Path("~").expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    usual = {
        "HF_HUB_CACHE": hub / "hub",
        "HF_DATASETS_CACHE": hub / "datasets",
        "HF_MODULES_CACHE": hub / "modules",
        "TORCH_EXTENSIONS_DIR": caches / "torch_extensions",
        "TRITON_CACHE_DIR": home / ".triton" / "cache",
    }
    needed = [name for name, folder in usual.items() if name not in os.environ and not _can_be_written(folder)]
    needed = [name for name in needed if name != "HF_HUB_CACHE" or not usual[name].is_dir()]
    if not needed:
        return {}
    root = _own_folder()
    moved = {name: root / name.lower() for name in needed}
    for name, folder in moved.items():
        folder.mkdir(exist_ok=True)
        os.environ[name] = str(folder)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the ranks of a host find the same folder
        print(
            f"{usual[needed[0]]} cannot be written; caches lie in {root} for now. To keep them elsewhere set "
            f"{', '.join(needed)}, or a HOME that can be written",
            file=sys.stderr,
        )
    return moved


def _can_be_written(folder: Path) -> bool:
    """Whether a file can be made in this folder, or the folder itself."""
    there = next((path for path in (folder, *folder.parents) if _exists(path)), Path("/"))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # below a folder that may not be entered
        return False


def _own_folder() -> Path:
    """A folder that nobody else can write, the same one next time: a cache holds code that will be run."""
    folder = Path(tempfile.gettempdir()) / f"tinypi-caches-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="tinypi-caches-"))


__all__ = ["use_writable_caches"]
