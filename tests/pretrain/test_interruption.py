"""Commands that run commands: told to stop in either way, the inner one ends its work before the outer one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pretrain.quickstarts.commands_once import deepspeed_launcher, on_free_port
from tests.pretrain.conftest import environment, free_port
from tests.pretrain.forked_ranks import CONTEXT

OUTER = """
import os, sys
from pretrain.interruption import run_to_end, terminable
try:
    with terminable():
        run_to_end([sys.executable, "-c", sys.argv[1]], os.environ)
except KeyboardInterrupt:
    print("outer ended", flush=True)
"""
INNER = """
import signal, time
def save(*_):
    time.sleep(0.6)  # longer than subprocess.run would wait
    print("inner saved", flush=True)
    raise SystemExit
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
print("begun", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("way", ["Ctrl-C", "SIGTERM"])
def test_the_inner_command_saves_before_the_outer_one_ends(way):
    outer = subprocess.Popen(
        [sys.executable, "-c", OUTER, INNER],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert outer.stdout is not None
    assert outer.stdout.readline() == "begun\n"
    if way == "Ctrl-C":
        os.killpg(outer.pid, signal.SIGINT)
    else:
        outer.terminate()
    told, _ = outer.communicate(timeout=60)
    assert told == "inner saved\nouter ended\n"


def test_what_we_launch_has_a_port_of_its_own_and_the_rest_is_left_alone():
    plain = [*deepspeed_launcher(2), "pretrain/train.py", "--output", "runs/x"]
    one, two = on_free_port(plain), on_free_port(plain)
    assert one[3:] == two[3:] == plain[1:] and one[1] == "--master_port" and one[2] != two[2]
    assert on_free_port(one) == one and on_free_port(["python", "x.py"]) == ["python", "x.py"]


def _meet(port: int, told: object) -> None:
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(names)
    from pretrain.ranks.world import initialise_world

    try:
        initialise_world(1.0)
    except Exception as error:
        told.send(f"{type(error).__name__}: {error}")  # type: ignore[attr-defined]


@pytest.mark.parametrize("busy", [True, False])
def test_ranks_that_do_not_meet_say_what_to_do(busy):
    import socket

    with socket.socket() as other:
        port = free_port()
        if busy:
            other.bind(("0.0.0.0", port))
            other.listen()
        ours, theirs = CONTEXT.Pipe()
        rank = CONTEXT.Process(target=_meet, args=(port, theirs))
        rank.start()
        assert ours.poll(120)
        text = ours.recv()
        rank.join()
    assert ("ConfigurationError: port" if busy else "PeerLost: the ranks have not met") in text
    assert f"{port}" in text and "deepspeed --master_port" in text
