"""`python -m pretrain bench`: the search with speeds from a dictionary, and one real bench of two tiny launches."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain import __main__ as front_door
from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.planning import bench, bench_run
from pretrain.planning.bench import Candidate, Findings, Measurement, search
from pretrain.planning.bench_report import run, table
from pretrain.planning.bench_run import Runner
from pretrain.planning.options import BenchConfig
from pretrain.quickstarts.commands_once import StepFailed
from tests.pretrain.conftest import ROOT
from tests.pretrain.test_guards import toy

OWN = Candidate(1, 8, False, "fp32")
PRECISIONS = dict.fromkeys(range(4), "fp32")
BATCH, RANKS = 64, 2


class Machine:
    """Answers for a machine with these speeds; what is not named takes 1000. 0 means out of memory."""

    def __init__(self, speeds: dict[tuple[int, int, bool], float], reference: tuple[float, ...] = (1000, 1000, 1000)):
        self.speeds, self.reference = speeds, reference
        self.asked: list[Candidate] = []

    def __call__(self, candidate: Candidate, repetition: int) -> Measurement:
        self.asked.append(candidate)
        speed = self.speeds.get((candidate.zero_stage, candidate.micro_size, candidate.compile), 1000)
        if (candidate.zero_stage, candidate.micro_size, candidate.compile) == (0, OWN.micro_size, False) and speed:
            speed = self.reference[repetition]
        return (
            Measurement("ok", (speed * 0.9, speed, speed * 1.1), 1e9, load=2.0)
            if speed
            else Measurement("out of memory")
        )


def look(machine: Machine, own: Candidate = OWN, precisions: dict[int, str] = PRECISIONS) -> Findings:
    return search(own, precisions, lambda size: BATCH % (size * RANKS) == 0, machine)


def test_one_coordinate_after_the_other():
    machine = Machine({(2, 8, False): 1200, (2, 16, False): 1500, (2, 32, False): 1400, (2, 16, True): 1800})
    found = look(machine)
    assert found.winner == Candidate(2, 16, True, "fp32")
    stages = [Candidate(stage, 8, False, "fp32") for stage in range(4)]
    rest = [Candidate(2, 16, False, "fp32"), Candidate(2, 32, False, "fp32"), Candidate(2, 16, True, "fp32")]
    assert machine.asked == [*stages, stages[0], *rest, stages[0]]


def test_smaller_micro_batches_are_tried_where_larger_ones_do_not_help():
    found = look(Machine({(0, 16, False): 0, (0, 4, False): 1300, (0, 2, False): 1600, (0, 1, False): 1500}))
    assert found.winner == Candidate(0, 2, False, "fp32")


def test_the_global_batch_bounds_the_micro_batch():
    machine = Machine({(0, size, False): 1000 * size for size in (16, 32, 64)})
    assert look(machine).winner == Candidate(0, 32, False, "fp32")
    assert max(candidate.micro_size for candidate in machine.asked) == BATCH // RANKS


def test_what_lies_within_the_spread_is_equal_and_the_simplest_wins():
    speeds = {(1, 8, False): 1040, (3, 8, False): 1060, (3, 8, True): 1080}
    noisy = look(Machine(speeds, reference=(1000, 1100, 1050)))
    assert noisy.spread == pytest.approx(100 / 1050)
    assert noisy.winner == Candidate(0, 8, False, "fp32")
    assert look(Machine(speeds)).winner == Candidate(3, 8, True, "fp32")


def test_without_memory_for_plain_data_parallel_another_is_the_reference():
    found = look(Machine({(0, 8, False): 0, (1, 8, False): 0, (3, 8, False): 900}))
    assert found.reference == Candidate(2, 8, False, "fp32") and len(found.rows[found.reference]) == 3
    assert [row.status for row in found.rows[Candidate(0, 8, False, "fp32")]] == ["out of memory"]


def test_the_micro_batch_shrinks_until_something_fits():
    none_at_eight = {(stage, 8, False): 0.0 for stage in range(4)}
    found = look(Machine(none_at_eight | {(0, 4, False): 0, (2, 4, False): 1100}))
    assert found.reference == Candidate(1, 4, False, "fp32") and found.winner == Candidate(2, 4, False, "fp32")
    nothing = look(Machine({(stage, size, False): 0.0 for stage in range(4) for size in (1, 2, 4, 8)}))
    assert nothing.winner is None and len(nothing.rows) == 16


def test_the_configuration_itself_is_always_measured():
    own = Candidate(3, 2, True, "fp32")
    found = look(Machine({}), own)
    assert own in found.rows


def test_another_precision_wins_only_by_being_faster():
    own, precisions = replace(OWN, precision="bf16"), {0: "fp32", 1: "bf16", 2: "bf16", 3: "bf16"}
    assert look(Machine({}), own, precisions).winner == Candidate(1, 8, False, "bf16")
    faster = {(0, size, False): 1000 * size for size in (16, 32)}
    assert look(Machine(faster), own, precisions).winner.precision == "bf16"  # of equal stages, its own goes on
    assert look(Machine({}, reference=(2000, 2000, 2000)), own, precisions).winner.zero_stage == 0


def test_the_table_names_what_did_not_work(corpus, tiny_arguments, tmp_path):
    config = parse(tiny_arguments(tmp_path / "run", batch__size=64, batch__micro_size=8))[0]
    text = table(look(Machine({(3, 8, False): 0, (1, 8, False): 2000})), config, RANKS, BenchConfig())
    assert "ZeRO 3, fp32" in text and "out of memory" in text
    assert "* the winner: ZeRO 1, fp32, micro-batch 8, which is the configuration's own setting" in text
    assert "2.00x * (own)" in text and "not idle" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "ranks is 0; it must be at least 1"),
        (["--ranks", "3"], "batch.size 16 cannot be divided"),
        (["--timed_steps", "1"], "timed_steps is 1"),
        (["--total_seconds", "0"], "total_seconds is 0"),
        (["--batch.sise", "32"], "did you mean 'batch.size'?"),
        (["--task.train", '["nowhere"]'], "nowhere"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--engine.deepspeed", '{"zero_optimization": {"stage": 1}}'], "zero_optimization.stage"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(bench_run.Runner, "__call__", lambda *_: pytest.fail("something was launched"))
    monkeypatch.setattr(
        sys, "argv", ["pretrain", "bench", "--config", "configs/pangu_pi/runs/quickstart.yaml", *arguments]
    )
    assert front_door.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("bench: ") and error.count("\n") == 1


@pytest.fixture
def small(tiny_arguments, tmp_path) -> tuple[TrainConfig, str]:
    return parse(tiny_arguments(tmp_path / "run", batch__size=8, batch__micro_size=4))


def test_a_candidate_is_the_run_without_what_is_not_measured(small, tiny_arguments, tmp_path):
    growing = parse(tiny_arguments(tmp_path / "run", batch__size=8, batch__micro_size=4, batch__ramp="[[1, 16]]"))
    runner = Runner(*growing, BenchConfig(), RANKS, tmp_path, progress=None)  # type: ignore[arg-type]
    content = runner._configuration(Candidate(3, 2, True, "fp32"))
    assert (content["batch"]["size"], content["batch"]["micro_size"]) == (8, 2) and "output" not in content
    assert content["batch"]["ramp"] == []
    assert content["engine"]["zero_stage"] == 3 and content["engine"]["compile"] is True
    assert content["checkpoint"]["resume"] is False and content["steps"] == small[0].steps
    assert content["hooks"][0]["class_path"] == "pretrain.planning.bench_hook.BenchHook"
    assert content["optimizer"]["lr"] == small[0].optimizer.lr


@pytest.mark.parametrize(
    ("log", "status"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB", "out of memory"),
        ("[launch.py] process 7 exits with return code = -9", "out of memory"),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "out of memory"),
        ("train.py: batch.size 9 cannot be divided\nexits with return code = 1", "failed"),
    ],
)
def test_why_a_launch_failed(log, status, small, tmp_path):
    (tmp_path / "log.txt").write_text(log)
    runner = Runner(*small, BenchConfig(), RANKS, tmp_path, progress=None)  # type: ignore[arg-type]
    made = runner._judge(tmp_path, in_time=True, seconds=1.0)
    assert made.status == status and not made.rate
    assert status != "failed" or made.detail.startswith("train.py: batch.size 9 cannot be divided")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
def test_two_real_candidates_and_what_is_measured_is_kept(tmp_path, monkeypatch):
    """Two stages on two ranks through the launcher; called again, nothing is launched and the files are the same."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config, text = parse(toy(tmp_path / "run", "--batch.size", "8", "--task.factor", "1"))
    options = BenchConfig(ranks=2, warmup_steps=1, timed_steps=3)
    plain, sharded = (Candidate(stage, 4, False, "fp32") for stage in (0, 2))

    def two(configured, precisions, allowed, measure) -> Findings:
        return Findings(sharded, {each: [measure(each, 0)] for each in (plain, sharded)}, plain)

    monkeypatch.setattr("pretrain.planning.bench_report.search", two)
    first = run(config, text, options)
    results = tmp_path / "run_bench"
    made = json.loads((results / "bench.json").read_text())
    for candidate in made["candidates"]:
        (measurement,) = candidate["measurements"]
        assert measurement["status"] == "ok" and len(measurement["rates"]) == 3
        assert measurement["peak_memory"] > 50e6
    assert not (tmp_path / "run").exists(), "the run's own folder was touched"
    assert not list(results.rglob("checkpoints/step_*"))
    assert (results / "bench.png").stat().st_size > 5000
    composed = parse([*_words(config_file(tmp_path, text)), "--config", str(results / "winner.yaml")])[0]
    assert composed.engine.zero_stage == made["winner"]["zero_stage"]
    assert composed.batch.micro_size == 4 and composed.optimizer == config.optimizer

    monkeypatch.setattr(Runner, "_launch", lambda *_: pytest.fail("measured again"))
    assert run(config, text, options) == first


def config_file(folder: Path, text: str) -> Path:
    (folder / "whole.yaml").write_text(text)
    return folder / "whole.yaml"


def _words(path: Path) -> list[str]:
    return ["--config", str(path)]


def test_nothing_works(small, monkeypatch):
    monkeypatch.setattr(Runner, "__call__", lambda *_: Measurement("failed", detail="train.py: no luck"))
    with pytest.raises(StepFailed, match="no luck"):
        run(*small, BenchConfig(ranks=2))


def test_after_the_total_limit_nothing_is_launched(small, monkeypatch, tmp_path):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(bench_run.time, "monotonic", lambda: next(clock, 200.0))
    monkeypatch.setattr(Runner, "_launch", lambda *_: pytest.fail("launched"))
    from tqdm import tqdm

    runner = Runner(*small, BenchConfig(ranks=2, total_seconds=50), 2, tmp_path, tqdm(disable=True))
    assert runner(bench.Candidate(0, 4, False, "fp32"), 0).status == "no time"
