"""Process groups and small agreements between ranks.

Works under the `deepspeed` launcher, under `torchrun` and as a plain process (a world of one). Scalars that ranks must
agree on travel over a gloo group on the host, so that asking never waits for the accelerator.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from pretrain.errors import ConfigurationError, PeerLost
from pretrain.ports import free_port

LAZY_RANKS = 256
"""From this many ranks on, gloo connects two ranks when they first talk, not all pairs at the start."""


@dataclass(frozen=True)
class Peer:
    """Where a rank runs."""

    host: str
    """The host's own name."""
    address: str
    """Its address on the network over which it reaches the first host."""


@dataclass(frozen=True)
class World:
    """This process's place among the ranks."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """Host-side (gloo) group of all ranks; a process alone needs none."""
    peers: tuple[Peer, ...] = ()
    """Where every rank runs, by rank; empty outside of a process group."""

    @classmethod
    def alone(cls, device: str) -> World:
        """This process by itself, outside of any process group."""
        return cls(0, 1, 0, torch.device(device))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums each value over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Rank 0's integers on every rank: int64 [N]; what the other ranks give is not looked at."""
        (size,) = self.sum([float(values.size if self.is_main else 0)])
        tensor = torch.zeros(int(size), dtype=torch.int64)
        if self.is_main:
            tensor = torch.from_numpy(values.astype(np.int64))
        if self.size > 1:
            dist.broadcast(tensor, src=0, group=self.control)
        return tensor.numpy()

    def gather(self, value: Any) -> list[Any]:
        """The (picklable) value of every rank, by rank, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def names(self, ranks: Iterable[int]) -> str:
        """Ranks with their hosts, for messages: "host node-b (rank 2, 3)"."""
        by_host: dict[str, list[str]] = {}
        for rank in sorted(ranks):
            by_host.setdefault(self.peers[rank].host, []).append(str(rank))
        return ", ".join(f"host {host} (rank {', '.join(numbers)})" for host, numbers in by_host.items())

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.size > 1:
            dist.barrier(group=self.control)


def initialise_world(timeout_seconds: float = 1800) -> World:
    """Joins the process group that the launcher describes in the environment, or makes a world of one.

    Args:
        timeout_seconds: how long to wait for all ranks to join, and for one collective of the engine.

    Raises:
        ConfigurationError: another job has the port at which the ranks were to meet.
        PeerLost: not all ranks came there.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        _share_cores(local_size or int(os.environ["WORLD_SIZE"]))
        device = torch.device("cpu")
    else:
        accelerator.set_device(local_rank)
        device = torch.device(accelerator.device_name(local_rank))
    if int(os.environ["WORLD_SIZE"]) >= LAZY_RANKS:
        # A full mesh takes one file descriptor of every rank for each other: beyond the usual limit of 1,024 nothing
        # starts. Our collectives need a few dozen connections of a rank (docs/scaling.md).
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    if not dist.is_initialized():
        # DeepSpeed would first compile a shared-memory all-reduce for hosts without an accelerator: minutes of C++ for
        # what gloo does well enough, and its segments outlive a killed rank.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        try:
            deepspeed.init_distributed(
                dist_backend=accelerator.communication_backend_name(),
                verbose=False,
                timeout=timedelta(seconds=timeout_seconds),
            )
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            raise _not_joined(str(error)) from error
    # Ranks wait here for rank 0 to finish an evaluation, however long it takes; a rank that died is noticed at once.
    control = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    here = Peer(socket.gethostname(), _own_address(os.environ["MASTER_ADDR"]))
    joined = World(dist.get_rank(), dist.get_world_size(), local_rank, device, control)
    return replace(joined, peers=tuple(joined.gather(here)))


def _not_joined(error: str) -> ConfigurationError | PeerLost:
    """Why the ranks have not met, with what to do; torch names an address and an error number."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    first = error.splitlines()[0]
    if "EADDRINUSE" in error or "already in use" in error:
        return ConfigurationError(
            f"port {port} of {address} is taken, by another job on this machine perhaps, and the launcher's default is "
            f"the same for all; give each job its own: `deepspeed --master_port {free_port()} ...`, "
            f"`torchrun --master-port {free_port()} ...` ({first})"
        )
    return PeerLost(
        f"the ranks have not met at {address}, port {port}: look at the logs of the other ranks first; if they wait "
        "too, at the master's address and the interface (docs/multi_node.md), and whether another job on that machine "
        f"has this port: then give this one its own, `deepspeed --master_port {free_port()} ...` ({first})"
    )


def _share_cores(ranks_here: int) -> None:
    """Divides the cores among the ranks of this host unless the user chose: ranks that share cores slow each other."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))


def _own_address(other: str) -> str:
    """This host's address on the network over which it reaches `other`; no packet is sent."""
    family, kind, _, _, address = socket.getaddrinfo(other, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
