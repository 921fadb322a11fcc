"""At stage 3 the model is never whole on a rank other than the first, and begins with the values of other stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor, nn

from pretrain.command_line import parse
from pretrain.engine import Engine
from pretrain.model_building import build_for_partition, partition
from pretrain.ranks.world import initialise_world
from pretrain.tasks import LanguageModelTask
from tests.pretrain.conftest import TINY
from tests.pretrain.forked_ranks import call_on_ranks
from tests.pretrain.task_cases import Materials, arguments

RANKS = 2
WIDE = {"task.model_overrides": {"num_hidden_layers": 6}}
CASES = {
    "fp32": ("language", {"engine.precision": "fp32", **WIDE}),
    "bf16": ("language", {"engine.precision": "bf16", **WIDE}),
    "muon": ("language", {"engine.precision": "bf16", "optimizer.name": "muon", **WIDE}),
    "inherited": ("language", {"engine.precision": "fp32", **WIDE}),
    "sentences": ("sentences", {"engine.precision": "fp32"}),
    "whole": ("digits", {"engine.precision": "fp32"}),
}
"""A task and what is set for it; digits has no skeleton."""


def make(argument: tuple[Path, dict[str, list[str]]]) -> None:
    """On each rank: every case's engine; keeps its weights, and what a rank held while the model was cut."""
    folder, lines = argument
    world = initialise_world()
    for name, words in lines.items():
        config = parse(words)[0]
        if name == "fp32":
            torch.save(held_while_cutting(config, world), folder / f"held.{world.rank}.pt")
        engine = Engine(config, config.task, world)
        weights = engine.state_dict()
        buffers = {key: value.cpu() for key, value in engine.model.named_buffers()}
        torch.save((weights, buffers), folder / f"{name}.{world.rank}.pt")
        engine.close()


def held_while_cutting(config: Any, world: Any) -> list[int]:
    """Bytes of parameters and their parts on this rank, before each one is cut."""
    model = build_for_partition(config.task, config.seed, world)
    held: list[int] = []
    cut = deepspeed.zero.Init._convert_to_zero_parameters

    def counting(self: Any, parameters: list[nn.Parameter]) -> None:
        held.append(sum(storages(model).values()))
        cut(self, parameters)

    deepspeed.zero.Init._convert_to_zero_parameters = counting
    partition(model, world, {"train_batch_size": RANKS, "zero_optimization": {"stage": 3}})
    deepspeed.zero.Init._convert_to_zero_parameters = cut
    return held


def storages(model: nn.Module) -> dict[int, int]:
    tensors = [
        tensor for p in model.parameters() for tensor in (p, getattr(p, "ds_tensor", None)) if tensor is not None
    ]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def command_line(name: str, materials: Materials, folder: Path) -> list[str]:
    case, changes = CASES[name]
    words = arguments(case, materials, folder / name, engine__zero_stage=3)
    words += [word for key, value in changes.items() for word in (f"--{key}", text(value))]
    return words + (["--task.initial_weights", str(folder / "donor")] if name == "inherited" else [])


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture(scope="module")
def made(corpus: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("building")
    materials = Materials(folder, corpus)
    task = parse(command_line("fp32", materials, folder))[0].task
    donor = task.build_model(99)
    task.save_pretrained(donor, donor.state_dict(), folder / "donor")
    lines = {name: command_line(name, materials, folder) for name in CASES}
    log = folder / "log"
    assert call_on_ranks(RANKS, make, (folder, lines), log) == [0] * RANKS, log.read_text()[-3000:]
    return folder, lines


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_the_first_weights_are_those_of_the_other_stages(made: Any, name: str) -> None:
    folder, lines = made
    config = parse(lines[name])[0]
    model = config.task.build_model(config.seed)
    expected: dict[str, Tensor] = model.state_dict()
    dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
    weights, _ = torch.load(folder / f"{name}.0.pt")
    assert weights.keys() == expected.keys()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key, value in expected.items():
        assert torch.equal(weights[key], value.to(dtype) if key in parameters else value), key
    for rank in range(RANKS):
        _, buffers = torch.load(folder / f"{name}.{rank}.pt")
        assert buffers.keys() == dict(model.named_buffers()).keys()
        assert all(torch.equal(buffers[key], value) for key, value in model.named_buffers())


@pytest.mark.slow
@pytest.mark.distributed
def test_only_the_first_rank_ever_holds_the_model(made: Any) -> None:
    folder, lines = made
    config = parse(lines["fp32"])[0]
    sizes = [p.nbytes for p in config.task.build_model(config.seed).parameters()]
    first, second = (torch.load(folder / f"held.{rank}.pt") for rank in range(RANKS))
    assert len(first) == len(second) == len(sizes) + 1  # once with none, when the cutter is made
    assert max(first) == sum(sizes)
    assert max(second) <= sum(sizes) / RANKS + max(sizes) + 8 * len(sizes) < 0.8 * sum(sizes)


class Rebuilt(LanguageModelTask):
    """A task that makes something else of its model."""

    def build_model(self, seed: int) -> nn.Module:
        return nn.Sequential(super().build_model(seed))


def test_a_task_that_builds_in_a_way_of_its_own_has_no_skeleton(corpus: dict[str, Path], tmp_path: Path) -> None:
    shape = Materials(tmp_path, corpus).write("shape.yaml", TINY)
    skeleton = LanguageModelTask(shape, [str(corpus["train"])]).skeleton()
    assert skeleton is not None and all(p.is_meta for p in skeleton.parameters())
    assert Rebuilt(shape, [str(corpus["train"])]).skeleton() is None
