"""Fuzzes in this process, whose memory is limited, and prints what happened as JSON.

    python -m tests.fuzz.run FOLDER FACTOR [NAME ...]

FACTOR multiplies the number of examples. A process that dies leaves the file that killed it in FOLDER.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import Frame, Mutation, apply, draw_mutation
from tests.fuzz.targets import Target, targets

EXTRA_ADDRESSES = 4 * 2**30
"""Bytes that a reader may reserve beyond what the libraries have reserved when all sound files have been read."""
BATCH = 10
"""Inputs of one hypothesis example: its own work costs more than reading a small file."""
MAX_SHOWN = 400


def main(folder: str, factor: str, *names: str) -> None:
    """Fuzzes the targets named, or all."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    chosen = [target for target in targets() if not names or target.name in names]
    for target in chosen:
        place = _place(Path(folder), target)
        place.mkdir(parents=True)
        target.prepare(place)
        target.read(place)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + EXTRA_ADDRESSES,) * 2)
    print(json.dumps({target.name: fuzz(target, Path(folder), float(factor)) for target in chosen}))


def fuzz(target: Target, folder: Path, factor: float) -> dict[str, Any]:
    """Runs one target: how many inputs were taken, refused, and treated in any other way; memory, and seconds."""
    place = _place(folder, target)
    sound = {name: (place / name).read_bytes() for name, _ in target.files}
    counts = {"accepted": 0, "refused": 0}
    violations: dict[str, str] = {}
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    slowest, damaged = 0.0, ""
    choices = [
        (name, frame, structured)
        for name, frame in target.files
        for structured in ((True, False) if frame else (False,))
    ]

    def try_one(name: str, frame: Frame | None, mutation: Mutation) -> None:
        nonlocal slowest, damaged
        if damaged not in ("", name):
            (place / damaged).write_bytes(sound[damaged])
        damaged = name
        (place / name).write_bytes(apply(sound[name], mutation, frame))
        started = time.perf_counter()
        try:
            target.read(place)
            counts["accepted"] += 1
        except target.errors as error:
            counts["refused"] += 1
            named = name in str(error) or str(place) in str(error) or isinstance(error, FileNotFoundError)
            if target.names_file and not named:
                violations.setdefault(f"no file named by {type(error).__name__}", f"{error} <- {mutation}"[:MAX_SHOWN])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a native library is no Exception
            last = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            violations.setdefault(key, f"{error} <- {name} {mutation}"[:MAX_SHOWN])
        slowest = max(slowest, time.perf_counter() - started)

    @settings(
        max_examples=max(1, round(target.examples * factor / BATCH)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def once(random: Random) -> None:
        for _ in range(BATCH):
            name, frame, structured = random.choice(choices)
            try_one(name, frame, draw_mutation(random, structured))

    once()
    return {
        **counts,
        "violations": violations,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "seconds": round(time.perf_counter() - begun, 1),
        "slowest": round(slowest, 2),
    }


def _place(folder: Path, target: Target) -> Path:
    return folder / target.name.replace(" ", "_").replace(",", "")


if __name__ == "__main__":
    main(*sys.argv[1:])
