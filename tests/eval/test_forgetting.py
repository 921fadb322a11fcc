"""Forgetting: the loss on each part, when it was trained and at the end, for a task that knows nothing of text."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.order import Order
from eval.__main__ import main
from eval.probes.forgetting import ForgettingError, part_batches
from pretrain.command_line import parse, write_config
from pretrain.rounds.loss_record import record_file
from pretrain.trainer import train
from tests.pretrain.conftest import rows
from tests.pretrain.test_multi_round import BATCH, SEED, SIZE, STEPS, ledger, toy, weights
from tests.pretrain.toy import ToySource, ToyTask


def trained(output: Path, **changes: object) -> Path:
    config, text = parse(toy(output, **changes))
    train(config)
    write_config(output, text)
    return output


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("forgetting") / "two", checkpoint__every=5, checkpoint__keep=9)


def measured(tmp_path: Path, *arguments: str) -> dict:
    assert main(["forgetting", *arguments, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert (tmp_path / "out" / "forgetting.png").stat().st_size > 10_000
    return json.loads((tmp_path / "out" / "forgetting.json").read_text())


def test_every_column_is_what_it_says(two_rounds, tmp_path, capsys):
    result = measured(tmp_path, "--run", str(two_rounds), "--parts", "4")["two"]
    logged = [row["loss"] for row in rows(two_rounds, "train")][:STEPS]
    task, order = ToyTask(SIZE), Order([SIZE], BATCH, SEED)

    def mean(step: int, batches: range) -> float:
        model = task.build_model(0)
        model.load_state_dict(weights(two_rounds, step))
        samples = [ToySource(SIZE).sample(int(i)) for batch in batches for i in order.batch(batch)]
        with torch.no_grad():
            return float(task.loss(model.eval(), task.collate(samples)).per_sample.mean())

    assert [(part["first_batch"], part["last_batch"]) for part in result["parts"]] == [
        (0, 4),
        (5, 9),
        (10, 14),
        (15, 19),
    ]
    for number, part in enumerate(result["parts"]):
        batches = range(5 * number, 5 * number + 5)
        assert part["trained"] == pytest.approx(np.mean(logged[5 * number : 5 * number + 5]), rel=1e-5)
        assert part["final"] == pytest.approx(mean(30, batches), rel=1e-5)
        assert part["just_after"] == pytest.approx(mean(5 * number + 5, batches), rel=1e-5)
        assert part["round_1"] == pytest.approx(ledger(two_rounds)["losses"][list(batches)].mean(), rel=1e-5)
        assert part["gap"] == pytest.approx(part["final"] - part["trained"])
        assert part["rebound"] == pytest.approx(part["final"] - part["just_after"])
    assert result["held_out"] == pytest.approx(rows(two_rounds, "valid")[-1]["loss"], rel=1e-5)
    assert result["batches"] == STEPS and result["checkpoint"] == "step_00000030"
    assert "just_after" in capsys.readouterr().out


def test_runs_side_by_side_and_a_sample_of_batches(two_rounds, tmp_path):
    one = trained(tmp_path / "one", rounds__count=1)
    result = measured(tmp_path, "--run", f"both={two_rounds}", f"small={one}", "--parts", "2", "--batches", "3")
    assert list(result) == ["both", "small"]
    assert [part["batches"] for part in result["small"]["parts"]] == [3, 3]
    assert not {"round_1", "just_after"} & set(result["small"]["parts"][0])
    assert result["small"]["parts"][0]["trained"] == result["both"]["parts"][0]["trained"]


def test_the_log_serves_where_nothing_was_recorded_if_it_has_every_step(tmp_path, capsys):
    run = trained(tmp_path / "run")
    before = measured(tmp_path, "--run", str(run), "--parts", "2")["run"]["parts"]
    record_file(run, 1, "batch").path.unlink()
    after = measured(tmp_path, "--run", str(run), "--parts", "2")["run"]["parts"]
    assert [part["trained"] for part in after] == pytest.approx([part["trained"] for part in before], rel=1e-6)
    log = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(log[3:]))
    assert main(["forgetting", "--run", str(run), "--output", str(tmp_path / "out")]) == 1
    assert "the training loss of 20 of 20 batches was recorded neither in rounds/" in capsys.readouterr().err


def test_skipped_batches_are_left_out_and_counted(tmp_path):
    poison = [int(Order([SIZE], BATCH, SEED).batch(3)[0])]
    run = trained(tmp_path / "run", task__poison=json.dumps(poison), rounds__count=1)
    first, second = measured(tmp_path, "--run", str(run), "--parts", "2")["run"]["parts"]
    assert (first["batches"], first["left_out"], second["left_out"]) == (9, 1, 0)
    assert np.isfinite(first["gap"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "nowhere: not a run directory"),
        (["--run", "RUN", "RUN"], "--run: two runs are called 'two'"),
        (["--run", "RUN", "--parts", "21"], "round 1 has 20 batches, which do not make 21 parts; lower --parts"),
        (["--run", "RUN", "--parts", "0"], "--parts must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_one_line(two_rounds, tmp_path, capsys, arguments, message):
    arguments = [str(two_rounds) if word == "RUN" else word for word in arguments]
    assert main(["forgetting", *arguments, "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("eval forgetting: ") and message in error


def test_a_run_without_checkpoints_and_one_with_other_data_are_refused(two_rounds, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    config = (two_rounds / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config)
    assert main(["forgetting", "--run", str(tmp_path / "run"), "--output", str(tmp_path)]) == 1
    assert "has no complete checkpoint" in capsys.readouterr().err
    (tmp_path / "run" / "config.yaml").write_text(config.replace(f"seed: {SEED}", "seed: 77"))
    (tmp_path / "run" / "checkpoints").symlink_to(two_rounds / "checkpoints")
    assert main(["forgetting", "--run", str(tmp_path / "run"), "--output", str(tmp_path)]) == 1
    assert "is not that of its checkpoints any more" in capsys.readouterr().err


def test_parts_cover_everything_once_or_a_spaced_sample():
    assert np.concatenate(part_batches(43, 8, None)).tolist() == list(range(43))
    assert [part.tolist() for part in part_batches(40, 2, 4)] == [[0, 5, 10, 15], [20, 25, 30, 35]]
    with pytest.raises(ForgettingError, match="lower --parts"):
        part_batches(3, 4, None)
