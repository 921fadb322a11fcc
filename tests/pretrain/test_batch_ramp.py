"""Global batches that grow and shrink: the gradient is the mean of each, data and resuming are those of any run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from data_pipeline.order import Order
from eval.probes.forgetting import ForgettingError, TrainedRun
from pretrain.command_line import parse, write_config
from pretrain.config import BatchConfig
from pretrain.engine import Engine
from pretrain.errors import ConfigurationError
from pretrain.optimizers.optimizer import build_optimizer, parameter_groups
from pretrain.ranks.world import initialise_world
from pretrain.schedule import Hyperparameters
from pretrain.trainer import Outcome, train
from tests.pretrain.conftest import rows
from tests.pretrain.forked_ranks import train_on_ranks
from tests.pretrain.test_guards import SEED, SIZE, final_weights, run, toy
from tests.pretrain.toy import ToySource, ToyTask

RAMP = [[2, 4], [3, 12], [5, 16]]
SIZES = [8, 8, 4, 12, 12, 16, 16]
"""Of 7 batches, in micro-batches of 4: 2, 2, 1, 3, 3, 4, 4. After five micro-batches come steps of three, so a count of
micro-batches that goes on would end the first of them too early."""


def ramped(output, *extra: str, ramp: list[list[int]] = RAMP) -> list[str]:
    # A large epsilon, because AdamW makes whole steps of a gradient's rounding otherwise.
    words = ("--batch.ramp", json.dumps(ramp), "--optimizer.eps", "0.01", "--checkpoint.keep", "9")
    return toy(output, *words, *extra)


def by_hand(arguments: list[str]) -> dict[str, torch.Tensor]:
    """The weights after these steps, each on the mean over one whole batch, in plain torch."""
    config = parse(arguments)[0]
    task, source, order = ToyTask(SIZE), ToySource(SIZE), Order([SIZE], 1, SEED)
    model = task.build_model(SEED)
    optimizer = build_optimizer(parameter_groups(model, set(), config.optimizer), config.optimizer, 0.01)
    begin = 0
    for step, size in enumerate(SIZES):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * config.schedule.factor(step, len(SIZES))
        batch = task.collate([source.sample(int(order.batch(begin + place)[0])) for place in range(size)])
        (task.loss(model, batch).total / size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        begin += size
    return model.state_dict()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_step_is_the_mean_of_its_own_batch_and_resuming_changes_nothing(tmp_path, stage):
    """The resumed run begins at batch 2, before two changes of size."""
    arguments = ("--engine.zero_stage", str(stage))
    assert run(ramped(tmp_path / "whole", *arguments)) is Outcome.FINISHED
    whole, expected = final_weights(tmp_path / "whole"), by_hand(ramped(tmp_path / "whole"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    logged = rows(tmp_path / "whole", "train")
    assert [row["samples"] for row in logged] == [sum(SIZES[: step + 1]) for step in range(7)]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for later in ("step_00000004", "step_00000006", "step_00000007"):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / later)
    run(ramped(tmp_path / "cut", *arguments))
    cut = final_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert [row["event"] for row in rows(tmp_path / "cut", "event")] == ["resume"]
    assert [row["loss"] for row in rows(tmp_path / "cut", "train")] == [row["loss"] for row in logged]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_mean_of_any_number_of_equal_micro_batches_is_one_of_them(tmp_path, stage, precision):
    words = ("--engine.zero_stage", str(stage), "--engine.precision", precision)
    config = parse(ramped(tmp_path, *words))[0]
    engine = Engine(config, config.task, initialise_world())
    batch = config.task.collate([ToySource(SIZE).sample(index) for index in range(4)])
    norms = []
    for step, micro_batches in enumerate((4, 1, 3, 2, 1), 1):
        engine.set_hyperparameters(Hyperparameters(rate=0, decay=1, momentum=0.95))  # so nothing moves
        engine.accumulate(micro_batches)
        for _ in range(micro_batches):
            assert engine.wrapped.global_steps == step - 1
            engine.backward(engine.wrapped(batch).total)
            assert engine.update()
        assert engine.wrapped.global_steps == step
        norms.append(engine.gradient_norm)
    engine.close()
    assert norms == pytest.approx([norms[1]] * 5, rel=1e-5 if precision == "fp32" else 1e-2)


def test_two_ranks_train_on_what_one_does(tmp_path):
    two = toy(tmp_path / "two", "--batch.ramp", "[[2, 4], [3, 12]]", "--batch.micro_size", "2")
    assert train_on_ranks(2, [two], tmp_path / "log") == [0, 0]
    run(toy(tmp_path / "one", "--batch.ramp", "[[2, 4], [3, 12]]", "--batch.micro_size", "2"))
    one, two = (rows(tmp_path / name, "train") for name in ("one", "two"))
    assert [row["samples"] for row in one] == [row["samples"] for row in two] == [8, 16, 20, 32, 44, 56, 68]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    orders = [json.loads((tmp_path / name / "order.json").read_text()) for name in ("one", "two")]
    assert orders[0] == orders[1] and orders[0]["batch_changes"] == [[2, 4], [3, 12]]


def test_what_is_left_of_a_ramp_cannot_change_unasked(tmp_path):
    ramp = [[2, 4], [5, 12]]
    run(ramped(tmp_path, ramp=ramp))
    for later in ("step_00000006", "step_00000007"):
        shutil.rmtree(tmp_path / "checkpoints" / later)
    with pytest.raises(
        ConfigurationError, match=r"with batch\.ramp is 16, but .*_00000004 was written with 4, from batch 5"
    ):
        run(ramped(tmp_path, ramp=[[3, 16]]))
    with pytest.raises(ConfigurationError, match="in a run of several rounds it cannot change"):
        run([*toy(tmp_path, "--rounds.count", "2"), "--batch.size", "4"])
    # A past that is told otherwise is no change.
    run(ramped(tmp_path, "--batch.size", "4", ramp=[[5, 12]]))
    assert [row["event"] for row in rows(tmp_path, "event")] == ["resume"]
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000007")
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000006")
    run(ramped(tmp_path, "--batch.allow_change", "true", ramp=[[4, 16]]))
    events = {row["event"]: row["detail"] for row in rows(tmp_path, "event")}
    assert events["batch size"] == "4, from batch 5 on 12 -> 16 samples from batch 4 on"
    assert json.loads((tmp_path / "order.json").read_text())["batch_changes"] == [[2, 4], [4, 16]]


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        ("[[0, 4]]", r"batch\.ramp begins at the batches \[0\]; give numbers that rise"),
        ("[[4, 4], [4, 8]]", r"batch\.ramp begins at the batches \[4, 4\]; give numbers that rise"),
        ("[[4, 0]]", r"batch\.ramp has batches of 0"),
        ("[[4, 10]]", r"batch\.ramp: 10 cannot be divided into micro-batches of 4 on 1 ranks; possible sizes .*8, 12"),
        ("[4, 10]", r"batch\.ramp"),
    ],
)
def test_ramps_that_cannot_be_are_refused(tmp_path, ramp, message):
    with pytest.raises(ConfigurationError, match=message):
        run(toy(tmp_path, "--batch.ramp", ramp))


def test_a_ramp_in_several_rounds_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"batch\.ramp needs batches of one size .* or set rounds\.count to 1"):
        parse(toy(tmp_path, "--batch.ramp", "[[4, 16]]", "--rounds.count", "2"))


def test_samples_are_summed_batch_by_batch():
    batch = BatchConfig(size=8, ramp=[(2, 4), (3, 12), (5, 16)])
    assert [batch.samples(steps) for steps in range(8)] == [sum(SIZES[:steps]) for steps in range(8)]
    assert batch.largest == 16 and BatchConfig(size=8).samples(10) == 80


def test_losses_of_batches_of_several_sizes_are_not_compared(tmp_path):
    config, text = parse([*ramped(tmp_path), "--steps", "2"])
    train(config)
    write_config(tmp_path, text)
    with pytest.raises(ForgettingError, match="its global batches have several sizes"):
        TrainedRun.open(tmp_path)
