"""Ranks may read the same data from different places; different data is refused with the host that has it."""

from __future__ import annotations

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from pretrain.errors import ConfigurationError
from pretrain.ranks import agreement
from pretrain.ranks.world import Peer, World
from tests.pretrain.conftest import rows
from tests.pretrain.forked_ranks import train_on_ranks


@pytest.mark.slow
@pytest.mark.distributed
def test_the_content_decides_and_not_the_path(tmp_path, corpus, tiny_arguments):
    for rank in "01":  # as if each were a host with a disk of its own
        shutil.copytree(corpus["train"], tmp_path / rank / "train")
    shutil.copytree(corpus["train"], tmp_path / "0" / "other")
    shutil.copytree(corpus["valid"], tmp_path / "1" / "other")
    steps = {"steps": 3, "checkpoint__every": 3, "validation__every": 3}
    lines = [
        tiny_arguments(tmp_path / name, task__train=json.dumps([f"{tmp_path}/${{LOCAL_RANK}}/{name}"]), **steps)
        for name in ("train", "other")
    ]
    log = tmp_path / "log"
    assert train_on_ranks(2, lines, log) == [1, 1], log.read_text()[-3000:]
    assert [row["step"] for row in rows(tmp_path / "train", "train")] == [1, 2, 3]
    assert not (tmp_path / "other" / "metrics.jsonl").exists()
    here = socket.gethostname()
    assert (
        f"ConfigurationError: host {here} (rank 1) would train on other data than host {here} (rank 0)"
        in log.read_text()
    )
    assert "data.sources[0].shards[0].sha256: " in log.read_text()


class Threads(World):
    """A rank that is a thread of this process, on a host of its own; all share `meeting` and `values`."""

    meeting: Barrier
    values: list[Any]

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.meeting.wait(60)
        values = list(self.values)
        self.meeting.wait(60)
        return values

    def barrier(self) -> None:
        self.gather(None)


def check_as_hosts(*outputs: Path) -> list[Exception | None]:
    """What each host says of its own output folder."""
    peers = tuple(Peer(f"node-{rank}", "") for rank in range(len(outputs)))
    Threads.meeting, Threads.values = Barrier(len(outputs)), [None] * len(outputs)

    def check(rank: int) -> Exception | None:
        world = Threads(rank, len(outputs), 0, torch.device("cpu"), None, peers)
        try:
            agreement.check_shared_output(world, outputs[rank])
        except ConfigurationError as error:
            return error
        return None

    with ThreadPoolExecutor(len(outputs)) as pool:
        return list(pool.map(check, range(len(outputs))))


def test_a_run_folder_that_is_not_shared_is_refused_on_every_host(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "PATIENCE", 0.3)
    shared, own = tmp_path / "shared", tmp_path / "own"
    own.mkdir()
    assert check_as_hosts(shared, shared, shared) == [None] * 3
    refusals = check_as_hosts(shared, own, shared)
    for refusal in refusals:
        assert "host node-1 (rank 1) does not see what host node-0 (rank 0) writes there" in str(refusal)
    assert not list(shared.iterdir()) and not list(own.iterdir())
