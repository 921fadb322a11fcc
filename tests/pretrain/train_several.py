"""Trains several command lines one after the other in the same ranks, which saves starting them anew.

deepspeed tests/pretrain/train_several.py [--apart] RUNS.json      RUNS.json: [[arguments of train.py], ...]

With --apart every run has a process of its own on each rank, forked from one that has imported everything. Such a run
can be killed, and the next one begins: usually the same command line, which continues it.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from pretrain.command_line import parse
from pretrain.trainer import train


def meeting_point(plan: Path, number: int) -> str:
    """A free port, chosen by rank 0, at which the ranks of one run meet."""
    path = plan.with_suffix(f".{number}.port")
    if os.environ["RANK"] == "0":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            temporary = path.with_suffix(".tmp")
            temporary.write_text(str(probe.getsockname()[1]))
        temporary.replace(path)
    while not path.exists():
        time.sleep(0.01)
    return path.read_text()


def train_apart(plan: Path, number: int, arguments: list[str]) -> None:
    """Returns when the run has ended or was killed; ends this process if it failed otherwise."""
    port = meeting_point(plan, number)
    child = os.fork()
    if child == 0:
        os.environ["MASTER_PORT"] = port
        train(parse(arguments)[0])
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        sys.exit(1)


if __name__ == "__main__":
    plan = Path(sys.argv[-1])
    for number, arguments in enumerate(json.loads(plan.read_text())):
        if "--apart" in sys.argv:
            train_apart(plan, number, arguments)
        else:
            train(parse(arguments)[0])
