"""Another global batch midway: refused unless asked for, logged, and no sample left out or seen twice."""

from __future__ import annotations

import json

import pytest
import torch

from data_pipeline.order import Order
from pretrain.errors import ConfigurationError
from pretrain.trainer import Outcome
from tests.pretrain.conftest import rows
from tests.pretrain.test_guards import BATCH, SEED, SIZE, final_weights, run, toy

ALLOWED = ["--batch.allow_change", "true", "--schedule.name", "constant"]


def larger(output, *extra: str, steps: int) -> list[str]:
    return [*toy(output, *extra, steps=steps), "--batch.size", "12"]


def test_the_stream_goes_on_where_it_stood(tmp_path):
    run(toy(tmp_path, *ALLOWED, steps=3))
    assert run(larger(tmp_path, *ALLOWED, steps=7)) is Outcome.FINISHED
    assert [row["samples"] for row in rows(tmp_path, "train")] == [8, 16, 24, 36, 48, 60, 72]
    events = {row["event"]: row["detail"] for row in rows(tmp_path, "event")}
    assert events["batch size"] == "8 -> 12 samples from batch 3 on"
    written = json.loads((tmp_path / "order.json").read_text())
    assert (written["batch_size"], written["batch_changes"]) == (BATCH, [[3, 12]])
    # What the loader was given is the stream of the unchanged order, cut differently.
    order = Order([SIZE], BATCH, SEED)
    order.restart(written["batch_size"], written["batch_changes"])
    stream = [sample for step in range(9) for sample in Order([SIZE], BATCH, SEED).batch(step)]
    assert [sample for step in range(7) for sample in order.batch(step)] == stream


def test_a_changed_run_continues_without_being_asked_again(tmp_path):
    for name, stops in (("whole", [7]), ("cut", [4, 5, 7])):
        run(toy(tmp_path / name, *ALLOWED, steps=2))
        for number, steps in enumerate(stops):
            asked = ALLOWED if number == 0 else ["--schedule.name", "constant"]
            assert run(larger(tmp_path / name, *asked, steps=steps)) is Outcome.FINISHED
        assert [row["event"] for row in rows(tmp_path / name, "event")].count("batch size") == 1
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_it_is_refused_where_it_was_not_asked_for_and_between_rounds(tmp_path):
    run(toy(tmp_path, steps=2))
    with pytest.raises(
        ConfigurationError, match=r"batch\.size is 12, but .*step_00000002 was written with 8.*allow_ch"
    ):
        run(larger(tmp_path, steps=4))
    with pytest.raises(ConfigurationError, match="in a run of several rounds it cannot change"):
        run(larger(tmp_path, *ALLOWED, "--rounds.count", "2", steps=4))
    assert run(toy(tmp_path, steps=4)) is Outcome.FINISHED
