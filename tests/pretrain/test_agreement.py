"""Ranks may read the same data from different places; different data is refused with the host that has it."""

from __future__ import annotations

import json
import shutil
import socket

import pytest

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
