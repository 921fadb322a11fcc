"""Multiple rounds in whole runs, with a task that knows nothing of them: ledger, choice, resume from any moment."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from common.find_model import newest_checkpoints
from data_pipeline.order import Order
from data_pipeline.replay import ReplayConfig, replay
from data_pipeline.round_order import RoundsOrder, Selection, selection_path
from pretrain.command_line import parse
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.ranks.world import initialise_world
from pretrain.rounds.ledger import LossFile, unit_means
from pretrain.rounds.loss_record import record_file
from pretrain.scoring import score_samples
from pretrain.tasks.base import TaskModule
from pretrain.trainer import Outcome, Trainer, train
from tests.pretrain.conftest import rows
from tests.pretrain.forked_ranks import train_on_ranks
from tests.pretrain.toy import ToySource, ToyTask

SIZE, BATCH, STEPS, SEED = 400, 8, 20, 5
SOURCES = list(itertools.product(["batch", "sample"], ["frozen", "log"]))


def toy(output: Path, *extra: str, signals: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    settings: dict[str, Any] = {
        "task": "tests.pretrain.toy.ToyTask", "task.size": SIZE, "task.signals": json.dumps(signals or {}),
        "output": output, "steps": STEPS, "seed": SEED, "optimizer.lr": 0.01, "batch.size": BATCH,
        "batch.micro_size": 2, "checkpoint.every": 3, "rounds.count": 2, "telemetry.every": 1,
        "telemetry.tensorboard": "false", "telemetry.progress_bar": "false",
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))] + list(extra)


def run(arguments: list[str]) -> Outcome:
    return train(parse(arguments)[0])


def ledger(output: Path, number: int = 1) -> dict[str, np.ndarray]:
    return load_file(output / "rounds" / f"round_{number}.safetensors")


def served(output: Path, number: int = 2) -> np.ndarray:
    return Selection.load(selection_path(output, number)).units


def weights(output: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    name = (output / "checkpoints" / "latest").read_text() if step is None else f"step_{step:08d}"
    return load_tensors(output / "checkpoints" / name / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: last checkpoint, ledgers, selections, training records, logged losses."""
    assert [path.name for path in newest_checkpoints(one)][:1] == [path.name for path in newest_checkpoints(other)][:1]
    left, right = weights(one), weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)
    files = sorted(path.name for path in (one / "rounds").iterdir())
    assert files == sorted(path.name for path in (other / "rounds").iterdir())
    for name in files:
        assert (one / "rounds" / name).read_bytes() == (other / "rounds" / name).read_bytes(), name
    for kind in ("train", "valid"):
        assert [(r["step"], r["loss"]) for r in rows(one, kind)] == [(r["step"], r["loss"]) for r in rows(other, kind)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """An uninterrupted run of two rounds for every unit and source of losses."""
    folder, finished = tmp_path_factory.mktemp("whole"), {}
    for unit, source in SOURCES:
        finished[unit, source] = folder / f"{unit}_{source}"
        arguments = toy(finished[unit, source], rounds__unit=unit, rounds__loss_source=source, checkpoint__keep=99)
        assert run(arguments) is Outcome.FINISHED
    return finished


@pytest.mark.parametrize(("unit", "source"), SOURCES)
def test_the_ledger_has_every_unit_once_and_the_choice_is_of_the_right_size(whole, unit, source):
    output = whole[unit, source]
    found, units = ledger(output), served(output)
    stream = np.concatenate([Order([SIZE], BATCH, SEED).batch(step) for step in range(STEPS)])
    assert found["ids"].tolist() == (list(range(STEPS)) if unit == "batch" else stream.tolist())
    assert (found["ids"].dtype, found["losses"].dtype) == (np.int64, np.float32)
    assert set(found["counts"]) == ({BATCH} if unit == "batch" else {1})
    assert units.size == np.unique(units).size == (10 if unit == "batch" else 10 * BATCH)
    assert set(units.tolist()) <= set(found["ids"].tolist())
    assert not list((output / "rounds").glob("*.partial"))
    (row,) = rows(output, "round")
    chosen = np.isin(found["ids"], units)
    shift = (found["losses"][chosen].mean() - found["losses"].mean()) / found["losses"].std()
    assert row["shift"] == pytest.approx(shift, abs=1e-4) and row["chosen"] == units.size and row["step"] == STEPS
    assert [row["round"] for row in rows(output, "train")] == [1] * STEPS + [2] * (STEPS // 2)


@pytest.mark.parametrize("unit", ["batch", "sample"])
def test_frozen_losses_are_those_of_the_model_at_the_end_of_the_round(whole, unit):
    output = whole[unit, "frozen"]
    task = ToyTask(SIZE)
    model = task.build_model(0)
    model.load_state_dict(weights(output, STEPS))
    model.eval()
    found = ledger(output)
    for place in (0, 7, 19):
        numbers = Order([SIZE], BATCH, SEED).batch(place) if unit == "batch" else found["ids"][place : place + 1]
        batch = task.collate([ToySource(SIZE).sample(int(number)) for number in numbers])
        with torch.no_grad():
            expected = task.loss(model, batch).per_sample.mean()
        assert found["losses"][place] == pytest.approx(float(expected), rel=1e-5)


def test_logged_losses_are_those_of_training(whole):
    logged = [row["loss"] for row in rows(whole["batch", "log"], "train")]
    assert ledger(whole["batch", "log"])["losses"] == pytest.approx(logged[:STEPS], rel=1e-6)
    samples = ledger(whole["sample", "log"])["losses"].reshape(STEPS, BATCH)
    assert samples.mean(axis=1) == pytest.approx(logged[:STEPS], rel=1e-6)
    for output in whole.values():  # what every run records, whatever it chooses by
        assert record_file(output, 1, "batch").read(0, STEPS)[0] == pytest.approx(logged[:STEPS], rel=1e-6)


def test_the_learning_rate_starts_afresh_or_continues(tmp_path, whole):
    rates = [row["lr"] for row in rows(whole["batch", "frozen"], "train")]
    assert rates[STEPS - 1] == pytest.approx(0.001) and max(rates[STEPS:]) == pytest.approx(0.01)
    run(toy(tmp_path, rounds__schedule="continue"))
    rates = [row["lr"] for row in rows(tmp_path, "train")]
    assert rates.index(max(rates)) < 3 and all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.001)


def test_optimizer_moments_are_kept_between_rounds(tmp_path):
    extra = {"schedule__name": "constant", "schedule__warmup_steps": 0}
    run(toy(tmp_path / "two", rounds__keep=1.0, **extra))
    final = tmp_path / "two" / "checkpoints" / "step_00000040" / "engine"
    state = torch.load(next(final.glob("*optim_states.pt")), weights_only=False)  # written by this very test
    counts = [float(v["step"]) for v in state["optimizer_state_dict"]["base_optimizer_state"]["state"].values()]
    assert set(counts) == {40.0}


@pytest.mark.parametrize("keep", [1.0, 0.26])
def test_three_rounds_each_choose_from_everything_that_round_one_saw(tmp_path, keep):
    assert run(toy(tmp_path, rounds__count=3, rounds__keep=keep)) is Outcome.FINISHED
    length = round(keep * STEPS)
    assert len(rows(tmp_path, "train")) == STEPS + 2 * length
    for number in (1, 2):
        assert ledger(tmp_path, number)["ids"].tolist() == list(range(STEPS))
    second, third = served(tmp_path, 2), served(tmp_path, 3)
    assert second.size == third.size == length
    assert np.array_equal(second, third) == (keep == 1.0)
    assert not np.array_equal(ledger(tmp_path, 1)["losses"], ledger(tmp_path, 2)["losses"])


@pytest.mark.parametrize("unit", ["batch", "sample"])
def test_a_later_log_ledger_holds_the_newest_loss_of_every_unit(tmp_path, unit):
    run(toy(tmp_path, rounds__count=3, rounds__unit=unit, rounds__loss_source="log"))
    first, second, again = ledger(tmp_path, 1), ledger(tmp_path, 2), np.isin(ledger(tmp_path)["ids"], served(tmp_path))
    assert np.array_equal(first["losses"][~again], second["losses"][~again])
    assert not np.any(first["losses"][again] == second["losses"][again])


def test_samples_that_round_one_saw_more_than_once_stand_in_the_ledger_once(tmp_path):
    run(toy(tmp_path, task__size=64, rounds__unit="sample"))  # 160 visits of 64 samples
    assert sorted(ledger(tmp_path)["ids"].tolist()) == list(range(64))
    units, visits = np.unique(served(tmp_path), return_counts=True)
    stream = np.concatenate([Order([64], BATCH, SEED).batch(step) for step in range(STEPS)])
    assert units.size == 32 and np.array_equal(visits, np.bincount(stream)[units])


def test_uniform_and_part_scopes(tmp_path):
    run(toy(tmp_path / "uniform", rounds__selection="uniform"))
    run(toy(tmp_path / "part", rounds__scope="part", rounds__parts=5))
    assert np.bincount(served(tmp_path / "part") // 4, minlength=5).tolist() == [2] * 5
    assert np.array_equal(ledger(tmp_path / "uniform")["losses"], ledger(tmp_path / "part")["losses"])
    assert not np.array_equal(served(tmp_path / "uniform"), served(tmp_path / "part"))


def test_language_model_rounds_weigh_labels_and_replay(tmp_path, tiny_arguments):
    settings = {"steps": 6, "checkpoint__every": 50, "validation__every": 50, "rounds__count": 2}
    assert run(tiny_arguments(tmp_path, **settings)) is Outcome.FINISHED
    config = parse(tiny_arguments(tmp_path, **settings))[0]
    meta = json.loads((tmp_path / "checkpoints" / "step_00000009" / "meta.json").read_text())
    assert meta["identity"]["task"] == json.loads(json.dumps(config.task.identity()))  # as before any model was built
    (source,), _ = config.task.training_sources()
    order = RoundsOrder([len(source)], 8, config.seed, later=[Selection.load(selection_path(tmp_path, 2))])
    labels = [sum((source.sample(int(i))["labels"] >= 0).sum() for i in order.batch(step)) for step in range(6)]
    assert ledger(tmp_path)["counts"].tolist() == labels and min(labels) < 8 * 32  # document ends have no label
    assert "6 + 3 steps; batch units by loss (frozen)" in json.loads((tmp_path / "audit.json").read_text())["rounds"]
    for step in (6, 7, 8):
        (unit,) = order.units(step, "batch").tolist()
        found = [[(d.sample, d.text) for d in replay(ReplayConfig(str(tmp_path), number))] for number in (step, unit)]
        assert found[0] == found[1]


# Resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "source", "passes"),
    [(*pair, 28 * 4 + 1) for pair in SOURCES] + [("sample", "log", 9 * 4 + 2), ("batch", "frozen", 20 * 4)],
    ids=lambda value: {113: "in round 2", 38: "in round 1", 80: "at its end"}.get(value, value),
)
def test_stopped_in_any_round_and_continued_is_the_same_run(tmp_path, whole, unit, source, passes):
    settings = {"rounds__unit": unit, "rounds__loss_source": source, "checkpoint__keep": 99}
    assert run(toy(tmp_path, signals={"training": [passes, "SIGTERM"]}, **settings)) is Outcome.STOPPED
    assert run(toy(tmp_path, **settings)) is Outcome.FINISHED
    assert_same_run(whole[unit, source], tmp_path)


@pytest.mark.parametrize("unit", ["batch", "sample"])
def test_stopped_while_rescoring_keeps_what_is_done(tmp_path, whole, unit):
    settings = {"rounds__unit": unit, "checkpoint__keep": 99}
    # 4 passes of validation, then 4 per batch: in the second of three chunks of 8 batches.
    assert run(toy(tmp_path, signals={"frozen": [4 + 50, "SIGTERM"]}, **settings)) is Outcome.STOPPED
    (partial,) = (tmp_path / "rounds").glob("round_1.*.partial")
    assert len(LossFile(partial)) == (16 if unit == "batch" else 16 * BATCH)
    before = rows(tmp_path, "train")
    trainer = Trainer(parse(toy(tmp_path, **settings))[0])
    assert trainer.run() is Outcome.FINISHED
    assert trainer.task.passes["training"] == 10 * 4 and rows(tmp_path, "train")[:STEPS] == before
    (row,) = rows(tmp_path, "rescoring")
    assert row["samples"] == 4 * BATCH  # the third chunk only
    assert_same_run(whole[unit, "frozen"], tmp_path)


def test_killed_while_rescoring_and_again_in_round_two_is_the_same_run(tmp_path, whole):
    """kill -9, for real: in the middle of the second chunk, then between two checkpoints of the second round."""
    for moment in ({"frozen": [4 + 50, "SIGKILL"]}, {"training": [4 * 4 + 3, "SIGKILL"]}):
        arguments = toy(tmp_path, signals=moment, checkpoint__keep=99)
        assert train_on_ranks(1, [arguments], tmp_path / "log") == [-signal.SIGKILL]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000024"
    assert run(toy(tmp_path, checkpoint__keep=99)) is Outcome.FINISHED
    assert [row["step"] for row in rows(tmp_path, "event") if row["event"] == "resume"] == [20, 24]
    assert_same_run(whole["batch", "frozen"], tmp_path)


def test_a_kill_between_ledger_and_selection_does_not_rescore(tmp_path, whole):
    run(toy(tmp_path, checkpoint__keep=99, signals={"training": [20 * 4, "SIGTERM"]}))
    run(toy(tmp_path, checkpoint__keep=99, signals={"training": [1, "SIGTERM"]}))  # in the first step of round 2
    selection_path(tmp_path, 2).unlink()
    for path in newest_checkpoints(tmp_path)[:1]:
        assert path.name == "step_00000021"
        (path / "meta.json").unlink()  # falls back to the end of round 1
    trainer = Trainer(parse(toy(tmp_path, checkpoint__keep=99))[0])
    assert trainer.run() is Outcome.FINISHED and len(rows(tmp_path, "rescoring")) == 1
    assert_same_run(whole["batch", "frozen"], tmp_path)


def test_after_a_rollback_every_unit_is_still_there_once(tmp_path):
    order = Order([SIZE], BATCH, SEED)
    poison = [int(order.batch(step)[0]) for step in (6, 7)]
    settings = {"task__poison": json.dumps(poison), "guards__max_consecutive_skips": 2, "rounds__loss_source": "log"}
    assert run(toy(tmp_path, **settings)) is Outcome.FINISHED
    found = ledger(tmp_path)  # steps 6 and 7 were skipped, 6 to 7 stepped over: 22 batches for 20 steps
    assert found["ids"].tolist() == list(range(22))
    assert np.flatnonzero(np.isnan(found["losses"])).tolist() == [6, 7]
    assert rows(tmp_path, "round")[0]["excluded"] == 2 and not {6, 7} & set(served(tmp_path).tolist())
    assert len(rows(tmp_path, "train")) == 30


def test_a_rollback_in_round_two_goes_on_in_its_order(tmp_path, whole):
    units = [int(unit) for unit in _units_of_round_two(whole["batch", "frozen"])]
    late = [int(Order([SIZE], BATCH, SEED).batch(unit)[0]) for unit in units[:2]]

    class Late(ToyTask):
        """Poisoned from the second round on."""

        def loss(self, model, batch):
            self.poison = late if self.passes["training"] >= 80 and model.training else []
            return super().loss(model, batch)

    config = parse(toy(tmp_path, guards__max_consecutive_skips=2))[0]
    object.__setattr__(config, "task", Late(SIZE))
    assert train(config) is Outcome.FINISHED
    assert [row["event"] for row in rows(tmp_path, "event")] == ["skip", "skip", "rollback", "resume"]
    meta = json.loads((tmp_path / "checkpoints" / "step_00000030" / "meta.json").read_text())
    assert meta["step"] == 30 and meta["data_step"] == 31 and len(rows(tmp_path, "round")) == 1
    assert np.array_equal(served(tmp_path), served(whole["batch", "frozen"]))


def _units_of_round_two(output: Path) -> list[int]:
    order = RoundsOrder([SIZE], BATCH, SEED, later=[Selection.load(selection_path(output, 2))])
    return [int(order.units(STEPS + place, "batch")[0]) for place in range(STEPS // 2)]


# One round, before and after ----------------------------------------------------------------------------------------


def test_one_round_is_what_it_was(tmp_path):
    run(toy(tmp_path, rounds__count=1))
    meta = json.loads((tmp_path / "checkpoints" / f"step_{STEPS:08d}" / "meta.json").read_text())
    assert set(meta["identity"]["order"]) == {"sizes", "batch_size", "seed", "weights", "round"}
    assert {"step", "data_step", "skipped"} <= set(meta) and "round" not in rows(tmp_path, "train")[0]
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["round_1.batches.f32"]


def test_a_finished_run_gets_a_second_round_by_asking_for_it(tmp_path, whole):
    run(toy(tmp_path, rounds__count=1, checkpoint__keep=99))
    assert run(toy(tmp_path, checkpoint__keep=99)) is Outcome.FINISHED
    left, right = weights(tmp_path), weights(whole["batch", "frozen"])
    assert all(torch.equal(left[name], right[name]) for name in left)


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 22}, ConfigurationError, r"steps is 22, but round 2 of .* was chosen with 20"),
        ({"steps": 30}, ConfigurationError, r"steps is 30 and rounds\.keep 0\.5: that puts step 27 into round 1, but"),
        ({"rounds__keep": 0.6}, ConfigurationError, r"rounds\.keep is 0\.6, but round 2 of .* was chosen with 0\.5"),
        ({"rounds__unit": "sample"}, ConfigurationError, r"rounds\.unit is 'sample', but round 2 .* with 'batch'"),
        ({"rounds__count": 1}, ConfigurationError, r"steps is 20, but .* is at step 27 already; ask for more steps"),
        ({"seed": 6}, CheckpointError, "other data or another model"),
    ],
)
def test_what_decided_a_round_cannot_change_in_it(tmp_path, changes, error, message):
    run(toy(tmp_path, signals={"training": [27 * 4, "SIGTERM"]}))
    with pytest.raises(error, match=message):
        run(toy(tmp_path, **changes))
    assert run(toy(tmp_path)) is Outcome.FINISHED


def test_an_altered_or_missing_selection_is_refused(tmp_path):
    run(toy(tmp_path, signals={"training": [27 * 4, "SIGTERM"]}))
    path = selection_path(tmp_path, 2)
    content, selection = path.read_bytes(), Selection.load(path)
    path.write_bytes(Selection(2, 20, "batch", np.arange(10), selection.settings).to_bytes())
    with pytest.raises(CheckpointError, match=r"order\.rounds\[0\]\.units_sha256"):
        run(toy(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=r"round_2\.selection\.safetensors: not a round's selection.*restore it"):
        run(toy(tmp_path))
    path.write_bytes(content)
    assert run(toy(tmp_path)) is Outcome.FINISHED


def test_losses_that_were_not_recorded_cannot_be_chosen_by(tmp_path):
    run(toy(tmp_path, rounds__loss_source="log", signals={"training": [20 * 4, "SIGTERM"]}))
    record_file(tmp_path, 1, "batch").path.unlink()
    with pytest.raises(ConfigurationError, match=r"only 0 have a finite loss.*loss_source frozen"):
        run(toy(tmp_path, rounds__loss_source="log"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds__count": 0}, r"rounds\.count is 0; it must be at least 1"),
        ({"rounds__keep": 0}, r"rounds\.keep is 0\.0; it must be greater than 0 and at most 1"),
        ({"rounds__keep": 1.5}, r"rounds\.keep is 1\.5"),
        ({"rounds__keep": 0.01}, r"rounds\.keep 0\.01 of 20 steps is less than one step"),
        ({"rounds__parts": 0}, r"rounds\.parts is 0"),
        ({"rounds__parts": 11, "rounds__scope": "part"}, r"rounds\.parts is 11, but a later round has only 10 steps"),
        ({"rounds__unit": "token"}, "unit"),
        ({"rounds__loss_source": "guess"}, "loss_source"),
        ({"rounds__keeep": 0.5}, r"unknown field 'rounds\.keeep'; did you mean 'rounds\.keep'"),
    ],
)
def test_impossible_rounds_are_refused_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(toy(tmp_path, **changes))


# Ranks --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_make_the_same_ledger_and_the_same_choice(tmp_path, whole):
    """Killed while rescoring, resumed; the ledger is to the bit what one rank makes of the same weights."""
    output = tmp_path / "run"
    for signals, finishes in (({"frozen": [2 + 21, "SIGKILL"]}, False), ({}, True)):
        arguments = toy(output, signals=signals, checkpoint__keep=99, rounds__unit="sample", engine__zero_stage=3)
        log = tmp_path / "log"
        assert (train_on_ranks(2, [arguments], log) == [0, 0]) == finishes, log.read_text()[-3000:]
    assert rows(output, "rescoring")[0]["samples"] < STEPS * BATCH  # the second start continued the first's ledger
    found, alone = ledger(output), ledger(whole["sample", "frozen"])
    assert np.array_equal(found["ids"], alone["ids"])
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)  # the runs differ in the order of their sums
    assert np.array_equal(served(output), served(whole["sample", "frozen"]))
    task = ToyTask(SIZE)
    model = task.build_model(0)
    model.load_state_dict(weights(output, STEPS))
    module = TaskModule(task, model.eval())
    scores = score_samples(module, task, ToySource(SIZE), found["ids"], initialise_world(), 2)
    assert np.array_equal(unit_means(scores.losses_N, scores.weights_N, 1)[0], found["losses"])
