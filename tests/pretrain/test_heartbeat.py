"""A rank that goes silent or moves no more ends the run with its name: whom the watch names, and when.

That a stopped process is named while a run waits for it: tests/faults; a host that is cut off: test_two_hosts.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch.distributed.flight_recorder.components.loader import read_dump

from pretrain.config import DistributedConfig
from pretrain.errors import PeerLost
from pretrain.monitoring.status_file import RunStatus
from pretrain.ranks import heartbeat
from pretrain.ranks.heartbeat import STEP, Heartbeat, Seen
from pretrain.ranks.world import Peer, World


@pytest.fixture
def watch(tmp_path: Path) -> Heartbeat:
    """The second of two ranks' watch, whose thread does not run; it judges when asked."""
    alone = World.alone("cpu")
    status = RunStatus(tmp_path, total_steps=20, ranks=2, enabled=True)
    watching = Heartbeat(alone, DistributedConfig(silence_seconds=10, timeout_seconds=100), tmp_path, status)
    watching.world = World(1, 2, 0, alone.device, None, (Peer("node-a", "10.0.0.1"), Peer("node-b", "10.0.0.2")))
    return watching


def test_a_rank_that_took_its_leave_or_was_never_heard_is_not_silent(watch, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: pytest.fail(f"ended with {code}"))
    now = time.monotonic()
    watch._judge(now + 50)
    watch._judge(now + 51)
    said = capsys.readouterr().err
    assert said.count("no beat has come from host node-a (rank 0) in 10 s; if UDP is blocked") == 1
    watch.seen[0] = Seen(now, "step 7", leaving=True)
    watch._judge(now + 50)
    watch.seen[0] = Seen(now + 45, "step 7")
    watch._judge(now + 50)
    assert capsys.readouterr().err == ""


def test_a_step_that_takes_too_long_ends_the_run_and_an_evaluation_is_noted_once(watch, monkeypatch, capsys):
    ended: list[int] = []
    monkeypatch.setattr(heartbeat.os, "_exit", ended.append)
    now = time.monotonic()
    watch.seen[0] = Seen(now + 101, "step 18")
    watch.enter("evaluation", 17)
    watch._judge(now + 101)
    watch._judge(now + 102)
    said = capsys.readouterr().err
    assert not ended and said.count("evaluation at step 17 has taken more than 100 s") == 1
    watch.enter(STEP, 17)
    watch._judge(now + 110)
    assert ended == [1]
    said = capsys.readouterr().err
    assert "host node-b (rank 1) in step 18: step 18 has taken more than 100 s" in said
    assert "Elsewhere: host node-a (rank 0): step 18" in said


def test_stacks_and_collectives_are_written_where_torchs_own_tool_reads_them(watch, tmp_path):
    watch._say("nobody moves")
    assert "test_heartbeat.py" in (tmp_path / "stacks" / "rank_00001.txt").read_text()
    found = read_dump("rank_", str(tmp_path / "collectives" / "rank_1"))
    assert found["rank"] == 1 and isinstance(found["entries"], list)


def test_a_broken_connection_is_put_down_to_the_host_behind_the_address(watch, monkeypatch):
    monkeypatch.setattr(watch, "_watch", lambda: None)
    with (
        pytest.raises(PeerLost, match=r"host node-b \(rank 1\) in start.*the connection to host node-a \(rank 0\)"),
        watch,
    ):
        raise RuntimeError("[pair.cc:561] Connection closed by peer [10.0.0.1]:58762. This is typically")
    with pytest.raises(RuntimeError, match="preamble"), watch:  # a mistake of ours, with its traceback
        raise RuntimeError("[gloo/transport/tcp/pair.cc:454] op.preamble.length <= op.nbytes. 12 vs 8")
