"""Seventeen injuries to one real run; `make faults` does hundreds."""

from __future__ import annotations

import pytest

from tests.faults.campaign import Campaign
from tests.faults.injuries import INJURIES, PLANTED
from tests.pretrain.conftest import TINY

KINDS = [
    "clock set back",
    "second job in the folder",
    "SIGKILL of the launcher",
    "worker process killed",
    "checkpoint's bit flipped",
    "disk full",
    "latest points nowhere",
    "SIGKILL of one rank",
    "SIGSTOP of one rank",
    "SIGTERM to torchrun",
    "SIGTERM to deepspeed",
    "SIGTERM to deepspeed's launch.py",
    "Ctrl-C",
    "SIGTERM to every process, twice",
]
"""With those that are planted in the data, seventeen."""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_that_everything_happens_to_ends_like_one_that_was_left_alone(corpus, tmp_path):
    assert set(KINDS) <= set(INJURIES)
    task = {"task": "tests.faults.bigrams.WoundedBigrams", "task.vocab_size": str(TINY["vocab_size"])}
    records = Campaign(tmp_path / "campaign", corpus, stage=1, seed=5, kinds=KINDS, task=task).carry_out()
    missing = {*KINDS, *PLANTED.values()} - {record.kind for record in records}
    assert missing <= {"disk full"}  # where no file system may be mounted
