"""Ranks may read the same data from different places; different data is refused with the host that has it."""

from __future__ import annotations

import json
import shutil
import socket

import pytest

from tests.pretrain.conftest import deepspeed_command, launch, rows


@pytest.mark.slow
@pytest.mark.distributed
def test_the_content_decides_and_not_the_path(tmp_path, corpus, tiny_arguments):
    for rank in "01":  # as if each were a host with a disk of its own
        shutil.copytree(corpus["train"], tmp_path / rank / "train")
    places = {"task__train": json.dumps([f"{tmp_path}/${{LOCAL_RANK}}/train"])}
    words = tiny_arguments(tmp_path / "run", steps=3, checkpoint__every=3, validation__every=3, **places)
    log = tmp_path / "log"
    assert launch(deepspeed_command("pretrain/train.py", *words), log).wait(timeout=900) == 0, log.read_text()[-3000:]
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [1, 2, 3]

    shutil.rmtree(tmp_path / "1" / "train")
    shutil.copytree(corpus["valid"], tmp_path / "1" / "train")
    assert launch(deepspeed_command("pretrain/train.py", *words), log).wait(timeout=900) == 1
    here = socket.gethostname()
    assert f"host {here} (rank 1) would train on other data than host {here} (rank 0)" in log.read_text()
    assert "data.sources[0].shards[0].sha256: " in log.read_text() and "Traceback" not in log.read_text()
