"""Every version floor is one that was run: lowest.txt has it, and `make test-lowest` installs it."""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[1]
UNTRIED = {"flash-attn", "wandb", "ray"}
"""flash-attn needs a GPU, and tests of the others have stand-ins: pyproject.toml says so beside each."""


def floors() -> dict[str, Version]:
    """The lowest version of each direct dependency, where pyproject.toml gives one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, Version] = {}
    for text in [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]:
        requirement = Requirement(text)
        for specifier in requirement.specifier:
            if specifier.operator in (">=", "=="):
                assert found.setdefault(requirement.name, Version(specifier.version)) == Version(specifier.version), (
                    text
                )
    return found


def tried() -> dict[str, Version]:
    """What lowest.txt pins."""
    lines = (ROOT / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pins}


def test_every_floor_was_run() -> None:
    expected = floors()
    assert expected.keys() >= UNTRIED
    assert {name: floor for name, floor in expected.items() if name not in UNTRIED} == tried()
