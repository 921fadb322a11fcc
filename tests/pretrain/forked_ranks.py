"""Gloo ranks that begin at once: forked from a process that has imported everything and done nothing else.

A launch through `deepspeed` imports torch in four processes before the first step, which takes longer than these tests
train. What the launcher does is tested where it matters: test_faults.py, test_two_hosts.py, test_bench.py.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.pretrain.conftest import environment, free_port
from tests.processor import SWITCHES, pretend_processor

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["deepspeed", "pretrain.trainer", "pretrain.command_line", "pretrain.tasks.decoder"])


def start_ranks(ranks: int, runs: Sequence[Sequence[str]], log: Path) -> list[BaseProcess]:
    """Trains command lines of `train.py` one after the other on new ranks; returns their processes, by rank.

    Args:
        ranks: how many.
        runs: arguments of train.py.
        log: what they print is added there.
    """
    return _start(ranks, _train, runs, log)


def train_on_ranks(ranks: int, runs: Sequence[Sequence[str]], log: Path, seconds: float = 600) -> list[int | None]:
    """The same, awaited; returns the exit codes.

    Raises:
        TimeoutError: not ended in time; says what they have printed.
    """
    return _await(start_ranks(ranks, runs, log), log, seconds)


def call_on_ranks(
    ranks: int, function: Callable[[Any], None], argument: Any, log: Path, seconds: float = 600
) -> list[int | None]:
    """Calls `function(argument)` on new ranks, for tests of an engine without the loop; else as `train_on_ranks`."""
    return _await(_start(ranks, function, argument, log), log, seconds)


def _start(ranks: int, function: Callable[[Any], None], argument: Any, log: Path) -> list[BaseProcess]:
    with _environment():
        forkserver.ensure_running()
    port = free_port()
    processor = {name: os.environ[name] for name in SWITCHES if name in os.environ}  # the server may be older
    processes = [
        CONTEXT.Process(target=_call, args=(rank, ranks, port, processor, function, argument, log))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _await(processes: Sequence[BaseProcess], log: Path, seconds: float) -> list[int | None]:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    if late:
        raise TimeoutError(f"{len(late)} ranks have not ended within {seconds:g} s: {log.read_text()[-3000:]}")
    return [process.exitcode for process in processes]


@contextmanager
def _environment() -> Iterator[None]:
    """What the ranks have to find set when torch is imported, for as long as their server needs to start."""
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _call(
    rank: int,
    ranks: int,
    port: int,
    processor: dict[str, str],
    function: Callable[[Any], None],
    argument: Any,
    log: Path,
) -> None:
    with log.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update(
        environment() | {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"} | processor
    )
    pretend_processor()
    function(argument)


def _train(runs: Sequence[Sequence[str]]) -> None:
    from pretrain.command_line import parse
    from pretrain.trainer import train

    for arguments in runs:
        train(parse(arguments)[0])
