"""Muon: that every stage reaches it, what it does to gradients, momenta and norms, and how ranks share the work."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch
from torch import nn

from pretrain import engine as engine_file
from pretrain.command_line import parse
from pretrain.config import OptimizerConfig
from pretrain.engine import Engine
from pretrain.optimizers import muon
from pretrain.optimizers.muon import MOMENTUM, Exchange, Matrix, Muon, Part, choose_owners, in_rounds
from pretrain.optimizers.newton_schulz import orthogonalisation_flops, orthogonalise
from pretrain.optimizers.optimizer import ParameterGroup
from pretrain.optimizers.pieces import Piece, held_pieces
from pretrain.ranks.world import World, initialise_world
from tests.pretrain.conftest import rows
from tests.pretrain.test_guards import final_weights, run, toy
from tests.pretrain.toy import ToySource

SHAPES = {"0.weight": (32, 16), "3.weight": (5, 32)}
"""The toy's matrices."""


def in_fp32(_: torch.device) -> torch.dtype:
    return torch.float32


def groups_of(matrices: list[nn.Parameter], vectors: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": matrices, "lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "use_muon": True},
        {"params": vectors, "lr": 0.01, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-8, "use_muon": False},
    ]


def parameters(seed: int = 0) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator))  # noqa: E731
    return [make(12, 6), make(6, 12), make(6, 6), make(6, 6)], [make(6), make(9, 6)]


def engine_of(stage: int, *words: str) -> Engine:
    arguments = ["--task", "tests.pretrain.toy.ToyTask", "--output", "x", "--steps", "9", "--batch.size", "4"]
    arguments += ["--batch.micro_size", "4", "--engine.zero_stage", str(stage), "--optimizer.name", "muon", *words]
    config = parse([*arguments, "--engine.precision", "fp32", "--optimizer.lr", "0.01"])[0]
    return Engine(config, config.task, initialise_world())


def step(engine: Engine, number: int, factor: float = 1.0) -> bool:
    source = ToySource(64)
    batch = engine.task.collate([source.sample(4 * number + k) for k in range(4)])
    engine.backward(engine.wrapped(batch).total * factor)
    return engine.update()


def momenta(engine: Engine) -> dict[str, torch.Tensor]:
    base = engine.wrapped.optimizer.optimizer if engine.stage else engine.wrapped.optimizer
    pieces = [piece for piece in held_pieces(engine) if piece.muon]
    flat = {piece.name: base.state[piece.flat][MOMENTUM].view(-1) for piece in pieces}
    return {p.name: flat[p.name][p.begin : p.begin + p.size].clone().view(p.shape) for p in pieces}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_orthogonalises_here_and_once(stage, monkeypatch):
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(muon, "orthogonalise", lambda x, steps: seen.append(tuple(x.shape)) or orthogonalise(x, steps))
    for module in (muon_optimizer, original_muon):
        monkeypatch.setattr(module, "muon_update", None)
    engine = engine_of(stage)
    assert step(engine, 0) and step(engine, 1)
    engine.close()
    assert sorted(seen) == sorted(2 * [(1, *shape) for shape in SHAPES.values()])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_norms_are_those_of_raw_gradients_which_are_clipped_before_momentum(stage):
    """The factor of the loss is a power of two, so that fp32 rounds alike."""
    found = {}
    for clip, factor in ((0.0, 1.0), (0.25, 4.0)):
        engine = engine_of(stage, "--optimizer.clip", str(clip), "--optimizer.muon_momentum", "0.5")
        assert step(engine, 0, factor)
        found[clip] = engine.gradient_norm, momenta(engine)
        engine.close()
    norm = found[0.0][0]
    assert 1 < norm < 100 and found[0.25][0] == pytest.approx(4 * norm, rel=1e-5)
    for name, plain in found[0.0][1].items():
        torch.testing.assert_close(found[0.25][1][name], plain * 0.25 / norm, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_with_nan_moves_neither_momenta_nor_weights(stage):
    engine = engine_of(stage)
    assert step(engine, 0)
    before, weights = momenta(engine), engine.state_dict()
    assert not step(engine, 1, float("nan"))
    after, still = momenta(engine), engine.state_dict()
    assert before.keys() == SHAPES.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(weights[name], still[name]) for name in weights)
    assert step(engine, 2)
    assert all(not torch.equal(before[name], tensor) for name, tensor in momenta(engine).items())
    assert all(torch.isfinite(tensor).all() for tensor in engine.state_dict().values())
    engine.close()


def deepspeeds_orthogonalise(x_BMN: torch.Tensor, steps: int) -> torch.Tensor:
    from deepspeed.runtime.zero.muon.original_muon import zeropower_via_newtonschulz5

    return torch.stack([zeropower_via_newtonschulz5(x, steps) for x in x_BMN])


def test_a_step_is_deepspeeds_but_for_the_orthogonalisation(monkeypatch):
    """Momentum, Nesterov, scale, decay and AdamW; with DeepSpeed's Newton-Schulz in place of ours."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    monkeypatch.setattr(muon, "orthogonalise", deepspeeds_orthogonalise)
    ours, others = parameters(), parameters()
    described = groups_of(*others)
    described[0]["ns_method"] = "standard"
    pair = Muon(groups_of(*ours), 5, in_fp32), MuonWithAuxAdam(described)
    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr("deepspeed.runtime.zero.muon.original_muon.ns_compute_dtype", lambda _: torch.float32)
    with torch._dynamo.config.patch(disable=True):
        for _ in range(3):
            for one, other in zip([*ours[0], *ours[1]], [*others[0], *others[1]], strict=True):
                one.grad = torch.randn(one.shape, generator=generator)
                other.grad = one.grad.clone()
            for optimizer in pair:
                optimizer.step()
    for one, other in zip([*ours[0], *ours[1]], [*others[0], *others[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    names = {tuple(sorted(state)) for state in pair[0].state.values()}
    assert names == {tuple(sorted(state)) for state in pair[1].state.values()}


def theirs(groups: list[ParameterGroup], config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """DeepSpeed's own optimizer in place of `build_optimizer`, marked as it wants to be."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    described = []
    for group in groups:
        for parameter in group.parameters:
            parameter.use_muon = group.use_muon  # type: ignore[attr-defined]
        both = {"params": group.parameters, "weight_decay": group.weight_decay, "use_muon": group.use_muon}
        muon_only = {"lr": config.muon_lr, "momentum": config.muon_momentum, "ns_method": "standard"}
        described.append(both | (muon_only if group.use_muon else {"lr": lr, "betas": config.betas, "eps": config.eps}))
    return MuonWithAuxAdam(described)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_of_deepspeeds_muon_is_continued(stage, tmp_path, monkeypatch):
    """Three steps by its optimizer and a fourth by ours, which is given its Newton-Schulz, equal four by ours."""
    monkeypatch.setattr(muon, "orthogonalise", deepspeeds_orthogonalise)
    monkeypatch.setattr("deepspeed.runtime.zero.muon.original_muon.ns_compute_dtype", lambda _: torch.float32)
    whole = {"zero_optimization": {"reduce_scatter": False}}
    words = ["--engine.zero_stage", str(stage), "--optimizer.name", "muon", "--optimizer.clip", "0"]
    words += ["--engine.deepspeed", json.dumps(whole), "--schedule.name", "constant"]
    with torch._dynamo.config.patch(disable=True):
        with monkeypatch.context() as patch:
            patch.setattr(engine_file, "build_optimizer", theirs)
            patch.setattr(Engine, "layout", "of an earlier version")
            run(toy(tmp_path / "both", *words, steps=3))
        run(toy(tmp_path / "both", *words, steps=4))
        run(toy(tmp_path / "ours", *words, steps=4))
    assert [row["event"] for row in rows(tmp_path / "both", "event")] == ["resume"]
    found, expected = (final_weights(tmp_path / name) for name in ("both", "ours"))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


def test_without_gradients_nothing_moves_and_a_single_missing_one_is_zero():
    matrices, vectors = parameters()
    optimizer = Muon(groups_of(matrices, vectors), 5, in_fp32)
    before = [tensor.detach().clone() for tensor in (*matrices, *vectors)]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, (*matrices, *vectors), strict=True)) and not optimizer.state
    matrices[0].grad = torch.ones(12, 6)
    optimizer.step()
    assert not torch.equal(before[0], matrices[0])
    torch.testing.assert_close(matrices[1].detach(), before[1] * (1 - 0.1 * 0.2))
    assert torch.equal(vectors[0], before[4])


class Ranks:
    """Threads that stand for ranks; all_to_all_single between them."""

    def __init__(self, count: int) -> None:
        self.count, self.barrier, self.calls = count, threading.Barrier(count), 0
        self.rank, self.board = threading.local(), [[torch.empty(0)] * count for _ in range(count)]

    def all_to_all_single(self, output: Any, given: Any, output_sizes: list[int], given_sizes: list[int]) -> None:
        me = self.rank.number
        self.board[me] = list(given.split(given_sizes))
        self.barrier.wait()
        parts = [self.board[peer][me] for peer in range(self.count)]
        assert [part.numel() for part in parts] == output_sizes
        output.copy_(torch.cat(parts))
        self.calls += me == 0
        self.barrier.wait()

    def run(self, work: Any) -> None:
        errors: list[BaseException] = []

        def enter(number: int) -> None:
            self.rank.number = number
            try:
                work(number)
            except BaseException as error:  # raised again below
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=enter, args=(number,)) for number in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


@pytest.mark.parametrize("how", ["whole everywhere", "cut as one vector", "each cut"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_together_give_what_one_gives(how, dtype, monkeypatch):
    """Three ranks, several shapes and rounds: as without ZeRO, as at stages 1 and 2, and as at stage 3."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(12, 6), (12, 6), (6, 12), (6, 6), (6, 6), (6, 6), (2, 6), (4, 2, 3)]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    count, total = 3, sum(g.numel() for g in gradients)
    held: list[list[Piece]] = [[] for _ in range(count)]
    for rank in range(count):
        begin = 0
        for number, gradient in enumerate(gradients):
            size = gradient.numel()
            if how == "whole everywhere":
                low, high = 0, size
            elif how == "each cut":
                share = -(-size // count)
                low, high = min(size, rank * share), min(size, (rank + 1) * share)
            else:
                share = -(-total // count)
                low, high = (min(size, max(0, end - begin)) for end in (rank * share, (rank + 1) * share))
            begin += size
            flat = nn.Parameter(torch.zeros(3 + high - low))
            flat.grad = torch.cat([torch.full((3,), 7.0), gradient.flatten()[low:high]])
            held[rank].append(Piece(flat, 3, str(number), gradient.shape, low, high - low, True))
    tables = [[(p.name, p.shape, p.start, p.size) for p in pieces] for pieces in held]
    ranks = Ranks(count)
    monkeypatch.setattr(muon.dist, "all_to_all_single", ranks.all_to_all_single)
    monkeypatch.setattr(muon, "ROUND_ELEMENTS", 72)

    def work(rank: int) -> None:
        Exchange(held[rank], tables, World(rank, count, rank, torch.device("cpu")), 5, dtype).run()

    ranks.run(work)
    assert ranks.calls > 2
    for number, gradient in enumerate(gradients):
        plane = gradient.flatten(1).to(dtype)
        expected = orthogonalise(plane[None], 5)[0] * max(1, plane.shape[0] / plane.shape[1]) ** 0.5
        for pieces in held:
            piece = pieces[number]
            assert piece.flat.grad[:3].tolist() == [7.0, 7.0, 7.0]
            part = expected.flatten()[piece.start : piece.start + piece.size].float()
            torch.testing.assert_close(piece.flat.grad[3:], part, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.1)


def test_owners_have_equal_work_and_keep_what_is_theirs():
    shapes = [torch.Size(shape) for shape in [(512, 192)] * 12 + [(192, 512)] * 6 + [(192, 192)] * 24]
    costs = [orthogonalisation_flops(*shape, 5, torch.float32) for shape in shapes]
    everywhere = [{rank: Part(0, shape.numel()) for rank in range(2)} for shape in shapes]
    half, begin, cut = sum(shape.numel() for shape in shapes) // 2, 0, []
    for shape in shapes:
        ends = [min(max(half - begin, 0), shape.numel()), shape.numel()]
        held = {0: Part(0, ends[0]), 1: Part(ends[0], ends[1] - ends[0])}
        cut.append({rank: part for rank, part in held.items() if part.size})
        begin += shape.numel()
    for parts, moved in ((everywhere, 0), (cut, 8)):
        owners = choose_owners(shapes, parts, 2, 5)
        work = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(2)]
        assert max(work) < 0.51 * sum(costs)
        assert sum(owner not in held for owner, held in zip(owners, parts, strict=True)) <= moved
    assert set(choose_owners(shapes[:3], [{3: Part(0, 1)}] * 3, 4, 5)) <= {0, 1, 2, 3}


def test_rounds_bound_what_a_rank_holds(monkeypatch):
    monkeypatch.setattr(muon, "ROUND_ELEMENTS", 10)
    sizes = [(0, 6), (0, 4), (0, 1), (1, 12), (1, 3), (0, 20), (1, 7)]
    matrices = [Matrix(n, torch.Size((1, size)), {}, owner) for n, (owner, size) in enumerate(sizes)]
    rounds = [[matrix.number for matrix in part] for part in in_rounds(matrices)]
    assert rounds == [[0, 1, 3], [2, 4, 6], [5]]
