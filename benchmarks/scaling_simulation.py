"""What thousands of ranks cost besides communication: our own code, called as it is, for ranks that do not exist.

Nothing here is a model of the code: `Order`, `Loader`, `Ledger`, `Checkpoints`, `write_whole_state` and gloo's process
groups are the real ones. Two figures are extrapolated, and say so: hashing and converting states of real size, by
bytes; connecting thousands of ranks through gloo, by pairs.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils.tensor_fragment import fragment_address

from common.atomic_files import fsync
from common.find_model import newest_checkpoints
from data_pipeline.identity import fingerprint
from data_pipeline.loader import Loader
from data_pipeline.order import Order
from data_pipeline.round_order import RoundsOrder, Selection, first_visits
from pretrain.checkpoints.checkpoint import ENGINE_TAG, Checkpoints
from pretrain.checkpoints.checksums import META_NAME, file_hashes
from pretrain.checkpoints.whole_state import PREFIX, WholeState, write_whole_state
from pretrain.config import CheckpointConfig, DistributedConfig
from pretrain.monitoring.status_file import RunStatus
from pretrain.ranks.heartbeat import Heartbeat, Seen
from pretrain.ranks.world import Peer, World
from pretrain.rounds.ledger import Ledger, LossFile
from pretrain.rounds.selection import choose

SEED = 1234
DATAGRAM_BYTES = 14 + 20 + 8
"""Ethernet, IPv4 and UDP headers."""
HASHING = "file_hashes, large files"


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    value: float
    unit: str
    note: str = ""
    processor: float | None = None
    """Of a time: what of it the processor worked. On a shared machine this is the figure to trust."""


class Seconds(float):
    """Wall-clock seconds, and those of the processor."""

    processor: float


def timed(call: Callable[[], Any]) -> tuple[Seconds, Any]:
    """Seconds of one call, and its result."""
    started, worked = time.perf_counter(), time.process_time()
    result = call()
    seconds = Seconds(time.perf_counter() - started)
    seconds.processor = time.process_time() - worked
    return seconds, result


def row(what: str, seconds: Seconds, note: str = "", times: int = 1) -> Row:
    """A time in the unit that suits it, for one of `times` calls."""
    unit, scale = ("ms", 1e3) if seconds / times < 0.1 else ("s", 1.0)
    return Row(what, seconds * scale / times, unit, note, seconds.processor * scale / times)


class Numbers:
    """A source without content: sample i is nothing, and no time is spent on it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int) -> dict[str, Any]:
        return {}


def order(ranks: int, samples: int) -> list[Row]:
    """What a rank pays for its slice, and that all slices together are the global batch."""
    plain, step = Order([samples], ranks, SEED), samples // ranks // 2
    large = Order([samples], 4 * ranks, SEED)
    mixed = Order([samples // 2, samples // 4, samples // 4], ranks, SEED, [0.5, 0.3, 0.2])
    rounds = RoundsOrder([samples], ranks, SEED)
    rounds.add(Selection(2, step, "sample", np.arange(0, samples, 2)))
    kinds = {
        f"Order.batch, {ranks:,} samples": plain,
        f"Order.batch, {4 * ranks:,} samples": large,
        f"Order.batch, {ranks:,} samples of a mixture of three": mixed,
        f"Order.batch, {ranks:,} samples chosen for round 2": rounds,
    }
    rows = []
    for name, kind in kinds.items():
        seconds, _ = timed(lambda kind=kind: [kind.batch(step + n) for n in range(20)])
        rows.append(row(name, seconds, "every rank computes the whole batch", times=20))
    source: Any = Numbers(samples)

    def slice_of(rank: int) -> np.ndarray:
        loader = Loader(source, plain, lambda batch: {}, rank=rank, world_size=ranks, micro_batch_size=1,
                        start_step=step, stop_step=step + 1)  # fmt: skip
        return np.concatenate([batch["sample_ids"].numpy() for batches in loader for batch in batches])

    seconds, slices = timed(lambda: [slice_of(rank) for rank in range(ranks)])
    whole = plain.batch(step)
    if not np.array_equal(np.concatenate(slices), whole) or np.unique(whole).size != ranks:
        raise AssertionError("the slices of all ranks are not the global batch")
    note = f"the slices of {ranks:,} Loaders are disjoint and together the global batch: checked"
    return [*rows, row("a rank's Loader, opened, and its first step", seconds, note, times=ranks)]


def ledger(ranks: int, samples: int) -> list[Row]:
    """A round's ledger of every sample, as rank 0 makes it."""
    steps = samples // ranks
    rounds = RoundsOrder([samples], ranks, SEED)
    seconds, (ids_N, _) = timed(lambda: first_visits(rounds, steps))
    rows = [row(f"first_visits, {ids_N.size:,} samples", seconds, "on every rank of a host, at the same time")]
    losses_N = np.random.default_rng(SEED).normal(3, 0.5, ids_N.size).astype(np.float32)
    ones_N = np.ones_like(losses_N)
    with tempfile.TemporaryDirectory() as folder:
        file = LossFile(Path(folder) / "round_1.samples.f32")
        per_save = 1000 * ranks
        flush = timed(lambda: file.write(0, losses_N[:per_save], ones_N[:per_save]))[0]
        rows.append(row(f"LossFile.write of 1,000 steps ({min(per_save, samples):,} samples)", flush, "rank 0"))
        made = Ledger(ids_N, losses_N, ones_N)
        path = Path(folder) / "ledger.safetensors"
        rows.append(row("Ledger.save", timed(lambda: made.save(path))[0], f"{16 * samples / 1e6:,.0f} MB, rank 0"))
        rows.append(row("Ledger.load", timed(lambda: Ledger.load(path))[0], "rank 0"))
    seconds, _ = timed(lambda: choose(losses_N, ids_N.size // 2, seed=SEED, parts=1, uniform=False))
    rows.append(row("choose half of the samples", seconds, "rank 0"))
    sent = 2 * ranks * 8
    return [*rows, Row("recording single samples: gloo all-reduce", sent / 1e3, "kB a step", "2 x batch x 8 bytes")]


def checkpoints(ranks: int, hashed_mb: int) -> list[Row]:
    """A folder with two files for each rank (stage 3), tiny ones: naming, hashing, finding, pruning."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        for step in (100, 200):
            _empty_checkpoint(root / f"step_{step:08d}", ranks)
        newest = root / "step_00000200"
        seconds, hashes = timed(lambda: file_hashes(newest))
        rows.append(row(f"file_hashes, {len(hashes):,} tiny files", seconds, "all ranks together, at every save"))
        for path in (root / "step_00000100", newest):
            position = {"step": 0, "data_step": 0, "skipped": 0}
            made = {"world_size": ranks, "zero_stage": 3, "identity": {"order": {"batch_size": ranks}}}
            (path / META_NAME).write_text(json.dumps(position | made | {"sha256": hashes}))
        seconds, _ = timed(lambda: [fsync(path) for path in newest.rglob("*")])
        rows.append(row("fsync of each of them", seconds, "all ranks together; a round trip each on network storage"))
        rows.append(Row("meta.json", (newest / META_NAME).stat().st_size / 1e6, "MB", "read by every rank at a resume"))
        saved = Checkpoints(Path(folder), CheckpointConfig(keep=1), World.alone("cpu"))
        rows.append(row("newest_checkpoints", timed(lambda: newest_checkpoints(folder))[0], "every rank"))
        seconds, found = timed(saved.find)
        assert found is not None and found.path == newest
        rows.append(row("Checkpoints.find, checksums included", seconds, "one process; the ranks share the hashing"))
        seconds, _ = timed(saved._prune)
        assert newest_checkpoints(folder) == [newest]
        rows.append(row(f"pruning one checkpoint of {len(hashes):,} files", seconds, "rank 0"))
        large = root / "large"
        large.mkdir()
        for number in range(4):
            (large / str(number)).write_bytes(os.urandom(hashed_mb * 2**20 // 4))
        seconds, _ = timed(lambda: file_hashes(large))
        rate = hashed_mb * 2**20 / seconds.processor / 1e9
        rows.append(Row(HASHING, rate, "GB/s", "of one core; four threads at most"))
    return rows


def _empty_checkpoint(path: Path, ranks: int) -> None:
    engine = path / ENGINE_TAG
    engine.mkdir(parents=True)
    for rank in range(ranks):
        for kind in ("model", "optim"):
            (engine / f"bf16_zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt").write_bytes(b"%d" % rank)


def conversion(ranks: int, per_rank: int, stage: int) -> Row:
    """`write_whole_state` from the files of all ranks, checked against what was cut."""
    generator = torch.Generator().manual_seed(SEED)
    shapes = {f"{PREFIX}layers.{n}.weight": torch.Size((8, per_rank * ranks // 64)) for n in range(8)}
    whole = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "step_00000100" / ENGINE_TAG
        engine.mkdir(parents=True)
        _cut(whole, engine, ranks, stage)
        names = [name.removeprefix(PREFIX) for name in shapes]
        target = Path(folder) / "whole_00000100"
        seconds, _ = timed(lambda: write_whole_state(engine, stage, ranks, names, target))
        with WholeState(target) as state:
            for name, tensor in whole.items():
                for key, expected in (("fp32", tensor), ("exp_avg_sq", tensor + 2)):
                    found = state.part(key, name.removeprefix(PREFIX), 0, tensor.numel())
                    assert torch.equal(found, expected.flatten())
    note = f"{sum(t.numel() for t in whole.values()):,} parameters; whole tensors equal to what was cut: checked"
    name = f"write_whole_state from {ranks:,} ranks, stage {stage}"
    return row(name, seconds, note)


def _cut(whole: dict[str, torch.Tensor], engine: Path, ranks: int, stage: int) -> None:
    """The files that DeepSpeed writes at stage 1 or 3, as far as a conversion looks at them."""
    shapes = {name: tensor.shape for name, tensor in whole.items()}
    model = {"buffer_names": [], "module": {}, "param_shapes": [shapes], "ds_config": {}}
    name = "mp_rank_00_model_states.pt" if stage == 1 else "bf16_zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save(model, engine / name)
    flat = torch.cat([tensor.flatten() for tensor in whole.values()])
    size = flat.numel() // ranks
    for rank in range(ranks):
        if stage == 1:
            own = flat[rank * size : (rank + 1) * size].clone()
            content = {
                "single_partition_of_fp32_groups": [own],
                "base_optimizer_state": {"state": {0: _moments(own)}},
                "param_slice_mappings": [_places(whole, rank * size, size)],
                "zero_stage": stage,
            }
        else:
            pieces = [tensor.flatten().view(ranks, -1)[rank] for tensor in whole.values()]
            own = torch.cat(pieces)
            content = {"fp32_flat_groups": [own], "optimizer_state_dict": {"state": {0: _moments(own)}}}
        path = engine / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": content}, path)


def _moments(own: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"exp_avg": own + 1, "exp_avg_sq": own + 2, "step": torch.tensor(100.0)}


def _places(whole: dict[str, torch.Tensor], begin: int, size: int) -> dict[str, fragment_address]:
    """Where each parameter's piece lies in the partition [begin, begin + size) of the flat vector."""
    places, first = {}, 0
    for name, tensor in whole.items():
        low, high = max(first, begin), min(first + tensor.numel(), begin + size)
        if low < high:
            places[name] = fragment_address(numel=high - low, start=low - begin)
        first += tensor.numel()
    return places


class ManyRanks(World):
    """Rank 0 of a world whose other ranks are this process too, as far as anybody asks."""

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size


def heartbeat(ranks: int, per_host: int) -> list[Row]:
    """What the beats of all ranks cost: the real thread's methods, with every other rank at this host's address."""
    peers = (Peer("localhost", "127.0.0.1"),) * ranks
    world = ManyRanks(0, ranks, 0, torch.device("cpu"), None, peers)
    beats = Heartbeat(world, DistributedConfig(), Path(), RunStatus(Path(), 1, ranks, enabled=False))
    rate, port = (ranks - 1) / beats.pause, beats._socket.getsockname()[1]
    content = {"run": beats._name, "rank": ranks - 1, "where": "step 123456", "leaving": False}
    size = len(json.dumps(content)) + DATAGRAM_BYTES
    rows = [
        Row("beats of a host, sent and received each", per_host * rate, "1/s",
            f"{per_host} ranks, {ranks - 1:,} others, every {beats.pause:g} s"),
        Row("their bytes", per_host * rate * size / 1e6, "MB/s", f"{size} bytes with headers, each way"),
    ]  # fmt: skip
    sending, _ = timed(beats._beat)
    rows.append(row("a rank sends its beats", sending, f"every {beats.pause:g} s"))
    beats._listen()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for rank in range(1, ranks):
            other.sendto(json.dumps(content | {"rank": rank}).encode(), ("127.0.0.1", port))
    listening, _ = timed(beats._listen)
    heard = len(beats.seen)
    rows.append(row("a rank takes in one beat", listening, "of a burst", times=max(heard, 1)))
    rows.append(Row("beats heard of a burst of all", heard, f"of {ranks - 1:,}",
                    "the socket's buffer holds so many while the thread waits for its turn"))  # fmt: skip
    now = time.monotonic()
    beats.seen = {rank: Seen(now, "step 1") for rank in range(1, ranks)}
    judging, _ = timed(lambda: [beats._judge(now) for _ in range(20)])
    rows.append(row("a rank judges all others once", judging, "after every beat that arrives alone", times=20))
    share = rate * (judging.processor / 20 + listening.processor / max(heard, 1)) + sending.processor / beats.pause
    rows.append(
        Row("all of it, of one core and under Python's lock", 100 * share, "%", "arriving one by one: the most")
    )
    beats._socket.close()
    return rows


def start_up(ranks: int, per_host: int, threads: list[int]) -> list[Row]:
    """What the ranks tell each other before the first step, and the connections that gloo makes for it."""
    messages = {
        "where it runs": Peer("node-0123.cluster.example.org", "10.100.123.231"),
        "where its beats go": (54321, "0123456789abcdef"),
        "fingerprint of its data": fingerprint({}),
    }
    rows = []
    for name, message in messages.items():
        size = len(pickle.dumps(message))
        rows.append(Row(f"all-gather, {name}", size * ranks / 1e3, "kB", f"received by a rank; {size} bytes of each"))
    rows.append(Row("gloo, all pairs: descriptors of a host", per_host * (ranks - 1), "sockets",
                    f"{ranks - 1:,} of a rank, where 1,024 is the usual limit"))  # fmt: skip
    for count in threads:
        for lazy in (False, True):
            seconds, descriptors = timed_in_child(count, lazy)
            kind = "when they first talk" if lazy else "all pairs"
            rows.append(
                Row(
                    f"gloo connects {count} ranks, {kind}", seconds, "s", f"{descriptors / count:.0f} sockets of a rank"
                )
            )
    return rows


def timed_in_child(ranks: int, lazy: bool) -> tuple[Seconds, int]:
    """Seconds for `ranks` process groups, in threads of a new process, to connect and sum once; its descriptors."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.environ["TORCH_GLOO_LAZY_INIT"] = "1" if lazy else "0"
        seconds, descriptors = _connect(ranks)
        os.write(writing, json.dumps([seconds, seconds.processor, descriptors]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        wall, processor, descriptors = json.loads(file.read())
    os.waitpid(child, 0)
    seconds = Seconds(wall)
    seconds.processor = processor
    return seconds, descriptors


def _connect(ranks: int) -> tuple[Seconds, int]:
    store, groups = dist.HashStore(), [None] * ranks

    def join(rank: int) -> None:
        group: Any = dist.ProcessGroupGloo(store, rank, ranks, timedelta(seconds=120))
        tensor = torch.ones(1)
        group.allreduce([tensor]).wait()
        group.barrier().wait()
        assert tensor.item() == ranks
        groups[rank] = group

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(ranks)]
    seconds, _ = timed(lambda: [thread.start() for thread in threads] and [thread.join() for thread in threads])
    return seconds, sum(1 for _ in Path("/proc/self/fd").iterdir())
