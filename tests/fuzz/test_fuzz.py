"""More than ten thousand damaged files: each is taken and usable, or refused with an error that names it.

`make fuzz EXAMPLES=10` tries ten times as many. The fuzzed readers run in a process with limited memory, so that a
native library that ends its process fails this test and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pretrain.errors import ConfigurationError
from tests.fuzz.mutations import whole
from tests.fuzz.run import fuzz
from tests.fuzz.targets import Target, targets
from tests.pretrain.conftest import ROOT, environment

FACTOR = float(os.environ.get("FUZZ_EXAMPLES", "1"))
"""Times the examples of an ordinary test."""
LEAST_INPUTS = 10_000
MAX_MEGABYTES = 700
"""By which the peak of memory may grow while one kind of file is fuzzed."""
MAX_SECONDS = 30
"""Of one input, on a machine that does much else."""


@pytest.mark.long
@pytest.mark.slow
def test_damaged_files_are_taken_or_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # files are written thirty thousand times
    with log.open("w") as errors, TemporaryDirectory(prefix="fuzz_", dir=memory) as files:
        command = [sys.executable, "-m", "tests.fuzz.run", files, str(FACTOR)]
        done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True)
    assert done.returncode == 0, f"exit code {done.returncode}: {log.read_text()[-3000:]}"
    results = json.loads(done.stdout.splitlines()[-1])
    assert results.keys() == {target.name for target in targets()}
    assert sum(found["accepted"] + found["refused"] for found in results.values()) >= LEAST_INPUTS * FACTOR
    assert {name: found["violations"] for name, found in results.items() if found["violations"]} == {}
    assert {name: found["megabytes"] for name, found in results.items() if found["megabytes"] > MAX_MEGABYTES} == {}
    assert {name: found["slowest"] for name, found in results.items() if found["slowest"] > MAX_SECONDS} == {}
    assert all(found["refused"] for name, found in results.items() if name != "run record")  # which lists what it lacks


def test_faults_of_a_reader_are_found(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "a.json").write_text('{"size": 3, "name": "x"}')

    def read(folder: Path) -> None:
        content = json.loads((folder / "a.json").read_text())
        if content["size"] != 3:
            raise ConfigurationError("a message that says nothing of the file")

    target = Target("careless", 300, [("a.json", whole)], write, read, (ConfigurationError,))
    (tmp_path / "careless").mkdir()
    write(tmp_path / "careless")
    found = fuzz(target, tmp_path, 1)["violations"]
    kinds = {violation.split()[0] for violation in found}
    assert {"KeyError", "JSONDecodeError", "UnicodeDecodeError", "RecursionError", "no"} <= kinds
