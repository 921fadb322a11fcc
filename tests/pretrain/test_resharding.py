"""Another number of ranks, another ZeRO stage: the run goes on with the same batches, to the same losses and weights.

Every pair of stages and every pair of 1 to 4 ranks, with both optimizers; bf16 and the offloaded optimizer in some of
them. All runs that have the same number of ranks are trained by the same ranks; a single one is this process.

Other ranks add gradients up in another order, which fp32 rounds by 2^-24, and Newton-Schulz amplifies that by up to the
product of its steps' largest coefficients. On processors with bf16 it would round by 2^-9 instead, to differences that
say nothing after three steps: so runs are compared as on a processor without, and what bf16 adds is tested in one step.
"""

from __future__ import annotations

import math
import shutil
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from pretrain.command_line import parse
from pretrain.config import OptimizerConfig
from pretrain.optimizers.newton_schulz import COEFFICIENTS, product_type
from pretrain.trainer import train
from tests.pretrain.conftest import rows
from tests.pretrain.forked_ranks import train_on_ranks
from tests.processor import processor_with


class Setup(NamedTuple):
    """How a part of a run is trained."""

    ranks: int
    stage: int
    optimizer: str = "adamw"
    precision: str = "fp32"
    offload: str = "none"

    @property
    def whole(self) -> Setup:
        """How the uninterrupted run is trained that this one must equal."""
        return Setup(1, int(self.precision == "bf16"), self.optimizer, self.precision)


RANKS, STAGES = (1, 2, 3, 4), (0, 1, 2, 3)
BATCH, FIRST, STEPS = 12, 3, 6
RANK_PAIRS, STAGE_PAIRS = list(product(RANKS, RANKS)), list(product(STAGES, STAGES))
PLAIN = [
    tuple(Setup(ranks[part], stages[part], ("adamw", "muon")[n % 2]) for part in (0, 1))
    for n, (ranks, stages) in enumerate(zip(RANK_PAIRS, STAGE_PAIRS[5:] + STAGE_PAIRS[:5], strict=True))
]
BF16 = [
    (Setup(1, 1, precision="bf16"), Setup(2, 2, precision="bf16")),
    (Setup(2, 2, precision="bf16"), Setup(1, 3, precision="bf16")),
    (Setup(2, 3, precision="bf16"), Setup(1, 1, precision="bf16")),
    (Setup(2, 1, precision="bf16"), Setup(3, 1, precision="bf16")),
    (Setup(2, 1, precision="bf16"), Setup(1, 0, precision="bf16")),
    (Setup(2, 0, precision="bf16"), Setup(2, 1, precision="bf16")),
    (Setup(1, 0, precision="bf16"), Setup(2, 3, precision="bf16")),
]
"""Ranks together sum gradients in fp32, with DeepSpeed's BF16_Optimizer at stage 1; one rank alone has nothing to sum.
With Muon test_precision.py compares the states themselves: what bf16 rounds is orthogonalised there, and grows."""
OFFLOADED = [
    (Setup(2, 2, offload="cpu"), Setup(1, 2, offload="cpu")),
    (Setup(1, 3, offload="cpu"), Setup(2, 3)),
    (Setup(2, 2), Setup(1, 3, offload="cpu")),
    (Setup(1, 2, "muon", offload="cpu"), Setup(2, 2, "muon", offload="cpu")),
    (Setup(3, 1, "muon", offload="cpu"), Setup(2, 2, "muon")),
    (Setup(2, 1, "muon"), Setup(3, 1, "muon", offload="cpu")),
]
CHANGES = [*PLAIN, *BF16, *OFFLOADED]
"""How the first part of a run is trained, and the second."""
TOLERANCES = {"fp32": (1e-4, 1e-4, 1e-3, 1e-5), "bf16": (1e-3, 1 / 256, 2e-2, 2e-3)}
"""Of training and validation losses, relative; of weights, relative and absolute. Seven samples are validated on, with
logits that bf16 rounds by up to 1/256."""


def arguments(folder: Path, setup: Setup, steps: int) -> list[str]:
    return [
        "--task", "tests.pretrain.toy.ToyTask", "--output", str(folder), "--steps", str(steps),
        "--batch.size", str(BATCH), "--batch.micro_size", str(2 if setup.precision == "bf16" else BATCH // setup.ranks),
        "--engine.zero_stage", str(setup.stage), "--engine.precision", setup.precision,
        "--engine.offload.optimizer", setup.offload, "--optimizer.name", setup.optimizer, "--optimizer.lr", "0.02",
        "--checkpoint.every", str(FIRST), "--telemetry.every", "1", "--telemetry.progress_bar", "false",
        "--telemetry.tensorboard", "false", "--schedule.name", "constant",
    ]  # fmt: skip


def run_all(folder: Path, name: str, plans: list[tuple[int, list[str]]]) -> None:
    """Trains command lines, those of one number of ranks on the same ranks."""
    for ranks in RANKS:
        lines = [line for number, line in plans if number == ranks]
        if ranks == 1:
            for line in lines:
                train(parse(line)[0])
            continue
        log = folder / f"{name}{ranks}.log"
        assert train_on_ranks(ranks, lines, log) == [0] * ranks, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every change's run, and the uninterrupted ones of one rank."""
    folder = tmp_path_factory.mktemp("changed")
    first, second = [], []
    for number, (before, after) in enumerate(CHANGES):
        output = folder / str(number)
        first.append((before.ranks, arguments(output, before, FIRST)))
        second.append((after.ranks, arguments(output, after, STEPS)))
    for whole in sorted({before.whole for before, _ in CHANGES}):
        first.append((1, arguments(folder / "-".join(map(str, whole)), whole, STEPS)))
    with processor_with(TEST_BF16="0"):
        run_all(folder, "first", first)
        run_all(folder, "second", second)
    return folder


def test_every_pair_of_ranks_and_of_stages_is_there() -> None:
    assert {(before.ranks, after.ranks) for before, after in PLAIN} == set(RANK_PAIRS)
    assert {(before.stage, after.stage) for before, after in PLAIN} == set(STAGE_PAIRS)
    assert {before.optimizer for before, _ in PLAIN} == {"adamw", "muon"}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(CHANGES)), ids=["/".join(map(str, (*a, *b))) for a, b in CHANGES])
def test_a_changed_run_equals_an_unchanged_one(changed: Path, number: int) -> None:
    before, _ = CHANGES[number]
    run, whole = changed / str(number), changed / "-".join(map(str, before.whole))
    of_training, of_validation, relative, absolute = TOLERANCES[before.precision]
    assert [row["event"] for row in rows(run, "event")] == ["resume"]
    for kind, tolerance in (("train", of_training), ("valid", of_validation)):
        actual = {row["step"]: row["loss"] for row in rows(run, kind)}
        expected = {row["step"]: row["loss"] for row in rows(whole, kind)}
        steps = range(1, STEPS + 1) if kind == "train" else [STEPS]
        assert [actual[step] for step in steps] == pytest.approx([expected[step] for step in steps], rel=tolerance)
    weights, others = (load_file(path / f"checkpoints/step_{STEPS:08d}/model.safetensors") for path in (run, whole))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        expected_weights = others[name].flatten().tolist()
        assert tensor.flatten().tolist() == pytest.approx(expected_weights, rel=relative, abs=absolute), name


HALF = [Setup(1, 0, "muon"), Setup(1, 2, "muon", offload="cpu"), Setup(2, 3, "muon"), Setup(3, 1, "muon")]
"""How one and the same checkpoint is continued with Newton-Schulz in bf16; the first changes nothing."""
AMPLIFIED = math.prod(a for a, _, _ in COEFFICIENTS[OptimizerConfig().muon_steps]) * 2**-9
"""Newton-Schulz begins with a matrix whose largest singular values are about 1, which bf16 rounds by up to 2^-9, and
multiplies what is small in it by its coefficients. The orthogonalised toy matrices have norms of 4 and of 2.2."""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_changed_step_in_bf16_differs_by_its_rounding(tmp_path: Path) -> None:
    before = HALF[0]
    with processor_with(TEST_BF16="1"):
        assert product_type(torch.device("cpu")) == torch.bfloat16
        run_all(tmp_path, "first", [(1, arguments(tmp_path / "start", before, FIRST))])
        for number in range(len(HALF)):
            shutil.copytree(tmp_path / "start", tmp_path / str(number))
        plans = [(after.ranks, arguments(tmp_path / str(n), after, FIRST + 1)) for n, after in enumerate(HALF)]
        run_all(tmp_path, "second", plans)
    paths = [tmp_path / "start" / f"checkpoints/step_{FIRST:08d}"]
    paths += [tmp_path / str(n) / f"checkpoints/step_{FIRST + 1:08d}" for n in range(len(HALF))]
    start, whole, *others = (load_file(path / "model.safetensors") for path in paths)
    lr = OptimizerConfig().muon_lr
    for name in ("0.weight", "3.weight"):
        height, width = start[name].shape
        unit = lr * max(1, height / width) ** 0.5  # of the matrix that Newton-Schulz gives
        moved = float((whole[name] - start[name]).norm()) / unit
        assert 2 < moved < 5
        for other in others:
            error = float((other[name] - whole[name]).norm()) / unit
            assert error < AMPLIFIED


@pytest.mark.parametrize("before", ["fp32", "bf16"])
def test_another_type_of_weights_at_the_same_ranks_and_stage_takes_the_masters(before: str, tmp_path: Path) -> None:
    """As a change of the stage does, which puts the state together: else bf16 weights would become fp32 masters."""
    after = {"fp32": "bf16", "bf16": "fp32"}[before]
    same, other = tmp_path / "same", tmp_path / "other"
    train(parse(arguments(same, Setup(1, 0, precision=before), FIRST))[0])
    shutil.copytree(same, other)
    for folder, stage in ((same, 0), (other, 1)):
        train(parse(arguments(folder, Setup(1, stage, precision=after), FIRST + 1))[0])
    weights, others = (
        load_file(path / f"checkpoints/step_{FIRST + 1:08d}/model.safetensors") for path in (same, other)
    )
    relative = {"fp32": 1e-5, "bf16": 1 / 128}[after]  # bf16 keeps 8 bits
    for name, tensor in weights.items():
        expected_weights = others[name].flatten().tolist()
        assert tensor.flatten().tolist() == pytest.approx(expected_weights, rel=relative, abs=1e-6), name
