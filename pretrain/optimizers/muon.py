"""Muon for the matrices, AdamW for the rest, in one optimizer that every ZeRO stage takes for an ordinary one.

    gradient --> momentum, Nesterov --> orthogonalised (newton_schulz.py) --> x sqrt(max(1, rows / columns)) --> step

Momentum is updated where the weights are, piece by piece; only the result has to be whole. So ZeRO need not know of
Muon: it averages, checks, measures and clips raw gradients, a step that it skips never comes here, and momenta are fp32
and cut like the weights. Whole matrices exist for a moment, in rounds of limited size:

    each rank's pieces --one all-to-all--> owners --> those of one shape together --one all-to-all--> pieces

Every matrix has one owner, so none is orthogonalised twice. Owners are chosen for equal work; at stages 1 and 2 a
matrix stays where it is as long as its rank has no more than its share.

Muon: kellerjordan.github.io/posts/muon. DeepSpeed's MuonWithAuxAdam, for which ZeRO has ways of its own, orthogonalises
one matrix at a time, without ZeRO all of them on every rank, and at stage 3 gathers gradients and momenta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.optimizers.newton_schulz import orthogonalisation_flops, orthogonalise, product_type
from pretrain.optimizers.pieces import Piece
from pretrain.ranks.world import World

MOMENTUM = "momentum_buffer"
"""Name of Muon's only state."""
ROUND_ELEMENTS = 2**24
"""Elements that a rank orthogonalises at a time, or one matrix."""
CACHED_ELEMENTS = 2**18
"""Of these, elements that a CPU multiplies as one batch: with what comes of them they stay in its cache."""

Row = tuple[str, torch.Size, int, int]
"""Of a rank's table of pieces: name and shape of the matrix, start and size of the piece."""


class Muon(torch.optim.Optimizer):
    """Updates groups with `use_muon` by Muon and the others by fused AdamW; a group brings all its hyperparameters."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        steps: int,
        type_of: Callable[[torch.device], torch.dtype] = product_type,
    ) -> None:
        """Takes whole parameters; under ZeRO, or with several ranks, `place` says what became of them.

        Args:
            groups: with `lr`, `weight_decay`, `use_muon`, and `momentum` or AdamW's `betas` and `eps`.
            steps: of Newton-Schulz, for each matrix.
            type_of: the type to orthogonalise in, by device.
        """
        super().__init__(list(groups), {})
        self.steps, self.type_of = steps, type_of
        rest = [group for group in self.param_groups if not group["use_muon"]]
        self._adamw = torch.optim.AdamW(rest, fused=True) if rest else None
        for group in rest:
            for name, value in self._adamw.defaults.items() if self._adamw else ():
                group.setdefault(name, value)
        self._exchanges: dict[Tensor, Exchange] = {}

    def place(self, pieces: Iterable[Piece], world: World) -> None:
        """Tells where this rank's pieces of the matrices lie. Collective.

        Args:
            pieces: of all parameters, in the order of the groups.
            world: the ranks.
        """
        by_flat: dict[Tensor, list[Piece]] = {}
        for piece in pieces:
            if piece.muon:
                by_flat.setdefault(piece.flat, []).append(piece)
        # One exchange for what is updated in one step: a group, whose vector may hold nothing on the last ranks, or at
        # stage 3, where DeepSpeed has taken the vectors out of the groups, one of them.
        held = [group["params"] for group in self.param_groups if group["use_muon"] and group["params"]]
        units = held or [[flat] for flat in by_flat]
        mine = [[piece for flat in unit for piece in by_flat.get(flat, [])] for unit in units]
        tables = world.gather([[(p.name, p.shape, p.start, p.size) for p in unit] for unit in mine])
        for number, unit in enumerate(units):
            self._make_exchange(unit, mine[number], [table[number] for table in tables], world)

    def _make_exchange(self, flats: Sequence[Tensor], mine: list[Piece], tables: list[list[Row]], world: World) -> None:
        exchange = Exchange(mine, tables, world, self.steps, self.type_of(world.device))
        self._exchanges |= dict.fromkeys(flats, exchange)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Applies one update to every parameter that has a gradient; of a matrix's gradient nothing is left."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["use_muon"]:
                self._update_matrices(group)
        rest = [group for group in self.param_groups if not group["use_muon"]]
        if self._adamw is not None and rest:
            self._adamw.param_groups, self._adamw.state = rest, self.state
            self._adamw.step()
        return loss

    def _update_matrices(self, group: dict[str, Any]) -> None:
        flats = group["params"]
        if all(flat.grad is None for flat in flats):
            return
        for flat in flats:
            if flat.grad is None:
                flat.grad = torch.zeros_like(flat)  # the other ranks wait for its matrix
            state = self.state[flat]
            if MOMENTUM not in state:
                state[MOMENTUM] = torch.zeros_like(flat)
        updates, momenta = [flat.grad for flat in flats], [self.state[flat][MOMENTUM] for flat in flats]
        torch._foreach_lerp_(momenta, updates, 1 - group["momentum"])
        torch._foreach_lerp_(updates, momenta, group["momentum"])
        if flats[0] not in self._exchanges:  # never placed, so whole
            whole = [Piece(flat, 0, str(n), flat.shape, 0, flat.numel(), True) for n, flat in enumerate(flats)]
            table = [(piece.name, piece.shape, piece.start, piece.size) for piece in whole]
            self._make_exchange(flats, whole, [table], World.alone(str(flats[0].device)))
        self._exchanges[flats[0]].run()
        torch._foreach_mul_(flats, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(flats, updates, alpha=-group["lr"])


@dataclass(frozen=True)
class Part:
    """Elements of a flattened matrix."""

    start: int
    size: int

    def of(self, matrix: Tensor) -> Tensor:
        """A view of them."""
        return matrix.view(-1)[self.start : self.start + self.size]


@dataclass(frozen=True)
class Matrix:
    """A matrix, the parts that ranks update, and the rank that orthogonalises it."""

    number: int
    shape: torch.Size
    parts: dict[int, Part]
    """By rank."""
    owner: int

    @property
    def others(self) -> dict[int, Part]:
        """What other ranks than the owner update."""
        return {rank: part for rank, part in self.parts.items() if rank != self.owner}

    @property
    def missing(self) -> dict[int, Part]:
        """What the owner does not hold itself: nothing where every rank holds all."""
        held = self.parts.get(self.owner)
        return {} if held is not None and held.size == self.shape.numel() else self.others


class Move(NamedTuple):
    """A part of a matrix that goes from one rank to another."""

    number: int
    sender: int
    receiver: int
    part: Part


class Transfer:
    """Parts of matrices that go from rank to rank at once."""

    def __init__(self, moves: Iterable[Move], rank: int, ranks: int) -> None:
        """Plans this rank's share.

        Args:
            moves: all ranks', in the same order on every rank.
            rank: this one.
            ranks: how many there are.
        """
        moves = list(moves)
        sent = sorted((move for move in moves if move.sender == rank), key=lambda move: move.receiver)
        received = sorted((move for move in moves if move.receiver == rank), key=lambda move: move.sender)
        self.sent, self.received = ([(move.number, move.part) for move in side] for side in (sent, received))
        self._going, self._coming = [0] * ranks, [0] * ranks
        for move in sent:
            self._going[move.receiver] += move.part.size
        for move in received:
            self._coming[move.sender] += move.part.size

    def run(self, sources: list[Tensor], targets: list[Tensor], dtype: torch.dtype, device: torch.device) -> None:
        """Fills the `targets`, one for each part received, from the other ranks' `sources`. Collective."""
        sizes = (self._going, self._coming)
        going, coming = (torch.empty(sum(counts), dtype=dtype, device=device) for counts in sizes)
        for place, source in zip(going.split([s.numel() for s in sources]), sources, strict=True):
            place.copy_(source)
        outgoing, incoming = ([count * dtype.itemsize for count in counts] for counts in sizes)
        # As bytes, because gloo does not know every type.
        dist.all_to_all_single(coming.view(torch.uint8), going.view(torch.uint8), incoming, outgoing)
        for target, place in zip(targets, coming.split([t.numel() for t in targets]), strict=True):
            target.copy_(place)


class Round:
    """Matrices that are orthogonalised at the same time, as one rank sees them."""

    def __init__(self, matrices: Sequence[Matrix], rank: int, ranks: int, stack_elements: int) -> None:
        """Plans one rank's part.

        Args:
            matrices: all of the round.
            rank: this one.
            ranks: how many there are.
            stack_elements: at most so many are multiplied as one batch, or one matrix.
        """
        owned = [matrix for matrix in matrices if matrix.owner == rank]
        self.own = {matrix.number: matrix.parts[rank] for matrix in owned if rank in matrix.parts}
        """What this rank updates of its matrices."""
        by_plane: dict[tuple[int, int], list[int]] = {}
        for matrix in owned:
            by_plane.setdefault((matrix.shape[0], math.prod(matrix.shape[1:])), []).append(matrix.number)
        self.stacks = [
            (plane, numbers[begin : begin + height])
            for plane, numbers in by_plane.items()
            for height in [max(1, stack_elements // math.prod(plane))]
            for begin in range(0, len(numbers), height)
        ]
        """Rows and columns, and numbers of its matrices; a convolution's filters are rows."""
        self.collect: Transfer | None = None
        self.give_back: Transfer | None = None
        if ranks > 1:
            self.collect = Transfer(
                (Move(m.number, peer, m.owner, part) for m in matrices for peer, part in m.missing.items()), rank, ranks
            )
            self.give_back = Transfer(
                (Move(m.number, m.owner, peer, part) for m in matrices for peer, part in m.others.items()), rank, ranks
            )


class Exchange:
    """Orthogonalises what lies in the gradients of pieces, together with the ranks that hold the other pieces."""

    def __init__(
        self, mine: Sequence[Piece], tables: Sequence[Sequence[Row]], world: World, steps: int, dtype: torch.dtype
    ) -> None:
        """Distributes the matrices, on every rank alike.

        Args:
            mine: this rank's pieces.
            tables: every rank's.
            world: the ranks.
            steps: of Newton-Schulz.
            dtype: to orthogonalise in, on the ranks' device.
        """
        shapes = {name: shape for table in tables for name, shape, _, _ in table}
        parts: dict[str, dict[int, Part]] = {name: {} for name in shapes}
        for rank, table in enumerate(tables):
            for name, _, start, size in table:
                if size:
                    parts[name][rank] = Part(start, size)
        owners = choose_owners(list(shapes.values()), list(parts.values()), world.size, steps)
        matrices = [
            Matrix(number, *known)
            for number, known in enumerate(zip(shapes.values(), parts.values(), owners, strict=True))
        ]
        elements = CACHED_ELEMENTS if world.device.type == "cpu" else ROUND_ELEMENTS
        self._rounds = [Round(part, world.rank, world.size, elements) for part in in_rounds(matrices)]
        numbers = {name: number for number, name in enumerate(shapes)}
        self._mine = {numbers[piece.name]: piece for piece in mine if piece.size}
        self._steps, self._dtype, self._device = steps, dtype, world.device

    def run(self) -> None:
        """Replaces the gradients of all pieces by the matrices' updates. Collective."""
        pieces = {number: _gradient(piece) for number, piece in self._mine.items()}
        for part in self._rounds:
            stacks = [
                torch.empty(len(numbers), *plane, dtype=self._dtype, device=self._device)
                for plane, numbers in part.stacks
            ]
            whole = _by_number(part, stacks)
            for number, held in part.own.items():
                held.of(whole[number]).copy_(pieces[number])
            self._move(part.collect, pieces, whole)
            updates = _by_number(part, [self._update(stack) for stack in stacks])
            for number, held in part.own.items():
                pieces[number].copy_(held.of(updates[number]))
            self._move(part.give_back, updates, pieces)

    def _update(self, matrices_BMN: Tensor) -> Tensor:
        rows, columns = matrices_BMN.shape[1:]
        update_BMN = orthogonalise(matrices_BMN, self._steps)
        return update_BMN.mul_(math.sqrt(rows / columns)) if rows > columns else update_BMN

    def _move(self, transfer: Transfer | None, sources: dict[int, Tensor], targets: dict[int, Tensor]) -> None:
        """Parts of `sources` to those of `targets`; what is itself a part is meant as it is."""
        if transfer is None:
            return
        sent, received = (
            [tensors[n] if tensors[n].numel() == part.size else part.of(tensors[n]) for n, part in moves]
            for tensors, moves in ((sources, transfer.sent), (targets, transfer.received))
        )
        transfer.run([t.reshape(-1) for t in sent], [t.view(-1) for t in received], self._dtype, self._device)


def choose_owners(shapes: Sequence[torch.Size], parts: Sequence[dict[int, Part]], ranks: int, steps: int) -> list[int]:
    """The rank that orthogonalises each matrix.

    The most expensive first, each to the rank that holds the most of it, unless that has its share of the work already:
    then to the one with the least. Of ranks that hold the same the one with less work is taken.

    Args:
        shapes: of the matrices.
        parts: what each rank holds of them.
        ranks: how many there are.
        steps: of Newton-Schulz.
    """
    costs = [orthogonalisation_flops(s[0], math.prod(s[1:]), steps, torch.float32) for s in shapes]
    share, work, owners = sum(costs) / ranks, [0.0] * ranks, [0] * len(shapes)
    for number in sorted(range(len(shapes)), key=lambda n: -costs[n]):
        sizes = {rank: part.size for rank, part in parts[number].items()}
        owner = min(sizes, key=lambda rank: (-sizes[rank], work[rank], rank))
        if work[owner] + costs[number] > share:
            owner = min(range(ranks), key=lambda rank: (work[rank], -sizes.get(rank, 0), rank))
        owners[number] = owner
        work[owner] += costs[number]
    return owners


def in_rounds(matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """The matrices by round, so that no rank has more than ROUND_ELEMENTS in one, or one matrix."""
    rounds: list[list[Matrix]] = []
    filled: dict[int, tuple[int, int]] = {}
    for matrix in matrices:
        current, held = filled.get(matrix.owner, (0, 0))
        if held and held + matrix.shape.numel() > ROUND_ELEMENTS:
            current, held = current + 1, 0
        filled[matrix.owner] = current, held + matrix.shape.numel()
        if current == len(rounds):
            rounds.append([])
        rounds[current].append(matrix)
    return rounds


def _by_number(part: Round, stacks: Sequence[Tensor]) -> dict[int, Tensor]:
    """The matrices of stacks, by their numbers."""
    found: dict[int, Tensor] = {}
    for (_, numbers), stack in zip(part.stacks, stacks, strict=True):
        found |= dict(zip(numbers, stack, strict=True))
    return found


def _gradient(piece: Piece) -> Tensor:
    gradient = piece.flat.grad
    assert gradient is not None
    return gradient.view(-1)[piece.begin : piece.begin + piece.size]
