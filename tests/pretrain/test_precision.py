"""Types: gradients are summed in what the audit says, and bf16 keeps fp32 masters at every stage, without ZeRO too."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file
from torch import Tensor

from pretrain.checkpoints.resharding import restore
from pretrain.checkpoints.whole_state import WEIGHT, WholeState, write_whole_state
from pretrain.command_line import parse
from pretrain.config import OptimizerConfig
from pretrain.engine import Engine, deepspeed_config
from pretrain.errors import ConfigurationError
from pretrain.optimizers.muon import MOMENTUM
from pretrain.optimizers.optimizer import parameter_groups
from pretrain.precision import describe_gradients, resolve_gradient_precision, resolve_precision
from pretrain.ranks.world import initialise_world
from pretrain.trainer import train
from tests.pretrain.conftest import rows
from tests.pretrain.forked_ranks import call_on_ranks
from tests.pretrain.test_guards import run, sample_of_step, toy
from tests.pretrain.toy import ToyTask

RANKS, MICRO_BATCHES, DECAY = 2, 16, 0.5


class Case(NamedTuple):
    stage: int
    optimizer: str
    offload: str
    gradients: str = "auto"

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


CASES = [
    *(Case(0, optimizer, "none") for optimizer in ("adamw", "muon")),
    *(Case(*setup) for setup in product((1, 2, 3), ("adamw", "muon"), ("none", "cpu"))),
    *(Case(stage, "adamw", "none", "bf16") for stage in (1, 2, 3)),
]


def in_bf16(case: Case) -> bool:
    return case.gradients == "bf16"


def accumulate(folder: Path) -> None:
    """On each rank: one step of every case; keeps what autograd gave in float64, and the engine's checkpoint."""
    world = initialise_world()
    written: dict[str, str] = {}
    for case in CASES:
        config = config_of(
            "--batch.size", str(4 * RANKS * MICRO_BATCHES), "--batch.micro_size", "4", "--engine.precision", "bf16",
            "--engine.zero_stage", str(case.stage), "--engine.gradient_precision", case.gradients,
            "--engine.offload.optimizer", case.offload, "--optimizer.name", case.optimizer, "--optimizer.lr", "1e-6",
            "--optimizer.clip", "0", "--optimizer.betas", f"[{DECAY},{DECAY}]", "--optimizer.muon_momentum", str(DECAY),
        )  # fmt: skip
        engine = Engine(config, config.task, world)
        seen = record(engine)
        source = config.task.training_sources()[0][0]
        first = world.rank * MICRO_BATCHES * 4
        for number in range(MICRO_BATCHES):
            samples = [source.sample(first + 4 * number + k) for k in range(4)]
            engine.backward(engine.wrapped(config.task.collate(samples)).total)
            assert engine.update()
        engine.wrapped.save_checkpoint(str(folder / case.name), "engine", save_latest=False)
        by_rank = world.gather(seen)
        if world.is_main:
            mean = {name: sum(part[name] for part in by_rank) / RANKS for name in seen}
            names = [name for group in engine.groups for name in group.parameter_names]
            write_whole_state(folder / case.name / "engine", case.stage, RANKS, names, folder / case.name / "whole")
            torch.save((mean, describe_gradients(engine.wrapped), engine.gradient_norm), folder / f"{case.name}.pt")
        world.barrier()
        if (earlier := written.get(case.optimizer)) is not None:
            restore_and_write(engine, folder / earlier / "whole", folder / case.name / "restored", case.stage)
        written[case.optimizer] = case.name
        engine.close()


def restore_and_write(engine: Engine, whole: Path, target: Path, stage: int) -> None:
    """Gives an engine the state of another, and writes what it then has."""
    with WholeState(whole) as state:
        restore(engine, state)
    engine.wrapped.save_checkpoint(str(target), "engine", save_latest=False)
    if engine.world.is_main:
        names = [name for group in engine.groups for name in group.parameter_names]
        write_whole_state(target / "engine", stage, engine.world.size, names, target / "whole")
        (target / "from").write_text(str(whole))
    engine.world.barrier()


def on_other_ranks(folder: Path) -> None:
    """On each of three ranks: the states of two ranks are given to engines of BF16_Optimizer."""
    world = initialise_world()
    for optimizer in ("adamw", "muon"):
        case = Case(1, optimizer, "none")
        config = config_of(
            "--batch.size", "12", "--batch.micro_size", "2", "--engine.precision", "bf16", "--optimizer.lr", "1e-6",
            "--optimizer.name", optimizer,
        )  # fmt: skip
        engine = Engine(config, config.task, world)
        assert type(engine.wrapped.optimizer).__name__ == "BF16_Optimizer"
        restore_and_write(engine, folder / case.name / "whole", folder / f"{optimizer}-on-3", 1)
        engine.close()


def record(engine: Engine) -> dict[str, Tensor]:
    """Sums of the gradients that autograd will give, by parameter."""
    seen: dict[str, Tensor] = {}

    def add(gradient: Tensor, name: str) -> None:
        assert gradient.dtype == torch.bfloat16
        seen[name] = seen.get(name, 0) + gradient.double()

    for name, parameter in engine.model.named_parameters():
        parameter.register_hook(partial(add, name=name))
    return seen


@pytest.fixture(scope="module")
def summed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of every case on two ranks."""
    folder = tmp_path_factory.mktemp("summed")
    log = folder / "log"
    for ranks, function in ((RANKS, accumulate), (3, on_other_ranks)):
        assert call_on_ranks(ranks, function, folder, log) == [0] * ranks, log.read_text()[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_are_summed_in_what_the_audit_says(summed: Path, case: Case) -> None:
    """After one step from nothing the first moment is a known share of the gradient that the optimizer was given."""
    expected, said, norm = torch.load(summed / f"{case.name}.pt")
    errors = []
    with WholeState(summed / case.name / "whole") as whole:
        for name, gradient in expected.items():
            key = "exp_avg" if "exp_avg" in whole.keys(name, gradient.shape) else MOMENTUM
            found = whole.part(key, name, 0, gradient.numel()).double().view(gradient.shape) / (1 - DECAY)
            errors.append(float((found - gradient).norm() / gradient.norm()))
    assert len(errors) == 6
    if in_bf16(case):
        assert max(errors) > 1e-3
        assert said == "summed over micro-batches in bf16, averaged over ranks in bf16"
    else:  # 32 terms, each addition rounded to 2^-24
        assert max(errors) < 32 * 2**-24
        assert said == "summed over micro-batches in fp32, averaged over ranks in fp32"
    total = sum(float(gradient.square().sum()) for gradient in expected.values()) ** 0.5
    assert norm == pytest.approx(total, rel=1e-2 if in_bf16(case) else 1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_what_another_stage_or_other_ranks_have_summed_is_taken_over_to_the_bit(summed: Path) -> None:
    restored = [*summed.glob("*/restored"), *summed.glob("*-on-3")]
    assert len(restored) == len(CASES) - 2 + 2  # all but the first of each optimizer, and two on three ranks
    for folder in restored:
        there, here = (load_whole(Path(path)) for path in ((folder / "from").read_text(), folder / "whole"))
        assert there.keys() == here.keys()
        for key, tensor in there.items():
            assert torch.equal(tensor.float(), here[key].float()), (folder, key)


def load_whole(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}


def group_order(optimizer: str) -> list[str]:
    """Names of the toy's parameters in the order of the optimizer's groups."""
    groups = parameter_groups(ToyTask().build_model(0), set(), OptimizerConfig(name=optimizer))  # type: ignore[arg-type]
    return [name for group in groups for name in group.parameter_names]


def config_of(*words: str) -> Any:
    return parse(["--task", "tests.pretrain.toy.ToyTask", "--output", "x", "--steps", "1", *words])[0]


def test_one_micro_batch_has_nothing_to_sum() -> None:
    for count, expected in ((1, "bf16"), (2, "fp32")):
        for stage in ("1", "2", "3"):
            config = config_of("--engine.precision", "bf16", "--engine.zero_stage", stage)
            assert resolve_gradient_precision(config, count) == expected
    assert resolve_gradient_precision(config_of("--engine.precision", "fp32"), 1) == "fp32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--engine.precision fp32 --engine.gradient_precision bf16", "needs engine.precision bf16"),
        ("--engine.precision bf16 --engine.gradient_precision bf16 --engine.zero_stage 0", "needs ZeRO"),
    ],
)
def test_what_the_engine_cannot_sum_in_is_refused_by_name(words: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        deepspeed_config(config_of(*words.split()), 1, 1000)


def test_a_device_without_bf16_trains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config_of("--engine.precision", "bf16")
    monkeypatch.setattr(get_accelerator(), "is_bf16_supported", lambda: False)
    with pytest.raises(ConfigurationError, match=r"engine\.precision bf16: this cpu device has no bf16; use fp32"):
        resolve_precision(asked)
    monkeypatch.setattr(get_accelerator(), "device_name", lambda: "cuda")
    assert resolve_precision(config_of()) == "fp32"
    monkeypatch.setattr(get_accelerator(), "is_bf16_supported", lambda: True)
    assert resolve_precision(config_of()) == "bf16" == resolve_precision(asked)


BF16 = ["--engine.precision", "bf16"]


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_with_fp32_gradients_resumes_to_the_bit(tmp_path: Path, stage: int) -> None:
    extra = [*BF16, "--engine.zero_stage", str(stage)]
    for name, parts in (("whole", [6]), ("parts", [4, 6])):
        for steps in parts:
            run(toy(tmp_path / name, *extra, "--schedule.name", "constant", steps=steps))
    ends = []
    for name in ("whole", "parts"):
        engine = tmp_path / name / "checkpoints" / "step_00000006" / "engine"
        write_whole_state(engine, stage, 1, group_order("adamw"), tmp_path / f"{name}-state")
        ends.append(load_whole(tmp_path / f"{name}-state"))
    assert len(ends[0]) == 6 * 4 and ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    losses = [[row["loss"] for row in rows(tmp_path / name, "train")] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.long
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_without_zero_bf16_trains_as_at_stage_1(tmp_path: Path, clip: float) -> None:
    """Same masters at the start, same gradients, norm, clipping and update; a poisoned step is skipped by both."""
    logs = []
    for stage in (0, 1):
        extra = [*BF16, "--engine.zero_stage", str(stage), "--optimizer.clip", str(clip)]
        run(toy(tmp_path / str(stage), *extra, poison=[sample_of_step(3)]))
        logs.append(rows(tmp_path / str(stage), "train"))
        (event,) = rows(tmp_path / str(stage), "event")
        assert (event["event"], event["step"]) == ("skip", 4)
    for one, other in zip(*logs, strict=True):
        if one["step"] != 4:
            assert one["loss"] == pytest.approx(other["loss"], rel=1 / 256)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1 / 64)
    assert logs[0][0]["loss"] == logs[1][0]["loss"]
    assert logs[0][0]["grad_norm"] == pytest.approx(logs[1][0]["grad_norm"], rel=1e-6)


def test_a_master_moves_by_less_than_its_weight_can_show(tmp_path: Path) -> None:
    """Twenty updates of a thousandth of a bf16 step each would all be lost without masters."""
    settings = ["--optimizer.lr", "1e-6", "--schedule.name", "constant", "--optimizer.weight_decay", "0"]
    train(parse([*toy(tmp_path, *BF16, "--engine.zero_stage", "0", steps=20), *settings])[0])
    engine = tmp_path / "checkpoints" / "step_00000020" / "engine"
    write_whole_state(engine, 0, 1, group_order("adamw"), tmp_path / "state")
    start = ToyTask().build_model(3).state_dict()
    weight = load_whole(tmp_path / "state")[f"{WEIGHT}/0.weight"]
    moved = (weight - start["0.weight"].bfloat16().float()).abs()
    assert 0 < moved.max() < 1e-4 and (moved > 5e-6).float().mean() > 0.5


def test_a_run_may_change_how_it_sums(tmp_path: Path) -> None:
    """At stage 1 another optimizer of DeepSpeed's takes over, on the same ranks."""
    for steps, gradients in ((3, "bf16"), (5, "fp32"), (7, "bf16")):
        run([*toy(tmp_path, *BF16, "--engine.gradient_precision", gradients, steps=steps)])
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 8))
    assert [row["event"] for row in rows(tmp_path, "event")] == ["resume", "resume"]
