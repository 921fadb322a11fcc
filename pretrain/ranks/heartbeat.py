"""Says which host went silent, and ends the run, where collectives would wait for it.

    every rank, one thread:   beat ──UDP──> every other rank       {run, rank, phase, step}, ten times per limit
                              no beat from a rank for `silence_seconds`  ──> stacks to RUN/stacks, an error, exit code 1
                              one step longer than `timeout_seconds`     ──> the same
                              another phase longer than that             ──> stacks and a note; the run goes on

With the stacks goes torch's record of the last collectives, to RUN/collectives: where all ranks live and none moves,
`torchfrtrace` finds in it the one that called another collective, or none. torch itself writes it only when a
collective times out, which a process that has ended here does not live to see.

A collective that lost its peer waits for minutes (NCCL) or as long as TCP keeps trying (gloo), and then blames an
address. Beats come from a thread, so a rank that computes, evaluates or writes for an hour is not silent; a host that
is switched off or cut off, and a process that is killed or stopped, are. Datagrams need no server that could be cut off
itself, and sending one never blocks. A rank whose beats never arrived (a firewall that drops UDP) is not watched.

What it costs: one datagram of about 100 bytes per pair of ranks and beat, in a thread; no collective during training.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import secrets
import select
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch.distributed as dist
from torch._C import _distributed_c10d

from pretrain.config import DistributedConfig
from pretrain.errors import PeerLost
from pretrain.monitoring.status_file import FAILED, RunStatus
from pretrain.ranks.world import World

BEATS_PER_LIMIT = 10
LONGEST_PAUSE = 15.0
"""Seconds between beats at most."""
JUDGE_EVERY = 1.0
"""Seconds between two looks at all ranks: of thousands, hundreds of beats arrive in between."""
PATIENCE = 10.0
"""Seconds that stacks may take to be written."""
LEAVING = "leaving"
"""The phase of a last beat: the rank is done and will be silent for good reason."""
STEP = "step"
SHOWN = 8
"""Ranks in the status file: those that were last heard of longest ago."""
BROKEN_CONNECTION = re.compile(
    "Connection (closed|reset) by peer|Broken pipe|No route to host|Network is unreachable|Timed out waiting|"
    "ncclRemoteError",
    re.IGNORECASE,
)
"""What torch's errors say when a collective failed because of another rank."""


@dataclass
class Seen:
    """The last that was heard of a rank."""

    at: float
    """Monotonic seconds."""
    where: str
    """Its phase then, in words."""
    leaving: bool = False
    """Whether it said that it was done."""


class Heartbeat:
    """Beats of this rank and a watch over all others, between `with` and its end.

    Collective when made: the ranks exchange where their beats are to be sent. Alone in the world it does nothing.
    """

    def __init__(self, world: World, config: DistributedConfig, run: Path, status: RunStatus) -> None:
        self.world, self.config, self.run, self.status = world, config, run, status
        self.pause = min(config.silence_seconds / BEATS_PER_LIMIT, LONGEST_PAUSE)
        self.seen: dict[int, Seen] = {}
        self._phase, self._step, self._since = "start", 0, time.monotonic()
        self._noted = self._counted = False
        self._began = self._since
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        if world.size > 1:
            self._socket = socket.socket(
                socket.AF_INET6 if ":" in world.peers[0].address else socket.AF_INET, socket.SOCK_DGRAM
            )
            self._socket.setblocking(False)
            self._socket.bind(("", 0))
            ports_and_names = world.gather((self._socket.getsockname()[1], secrets.token_hex(8)))
            self._name = ports_and_names[0][1]
            self._addresses = {
                rank: (peer.address, port)
                for rank, (peer, (port, _)) in enumerate(zip(world.peers, ports_and_names, strict=True))
            }

    def __enter__(self) -> Heartbeat:
        if self.world.size > 1:
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Takes leave of the others, or says whom a broken collective was waiting for.

        Raises:
            PeerLost: the body failed because the connection to another rank broke.
        """
        if self._thread is None:
            return
        if kind is not None:
            # No leave is taken, and no beat hides it if this process hangs at its end: silence is news to the others.
            self._done.set()
            # An error of torch's names an address only.
            if issubclass(kind, RuntimeError) and BROKEN_CONNECTION.search(str(error)):
                raise PeerLost(self._broken(str(error))) from error
            return
        self._phase = LEAVING
        self._done.set()
        self._beat()
        self._thread.join()
        self._beat()  # a datagram may be lost; two hardly are
        self._socket.close()

    def enter(self, phase: str, step: int) -> None:
        """Says what the main thread does now; `step` counts finished optimizer steps."""
        self._phase, self._step, self._since, self._noted = phase, step, time.monotonic(), False
        self.status.update(urgent=phase != STEP, phase=phase, step=step)

    @property
    def where(self) -> str:
        """The phase in words: "step 18" is the one that follows 17 finished ones."""
        return f"{STEP} {self._step + 1}" if self._phase == STEP else f"{self._phase} at step {self._step}"

    def _watch(self) -> None:
        """The thread: beats, listens, and judges right after it has listened."""
        judged = time.monotonic()
        self._beat()  # at once: a rank that was never heard is not watched
        # Then not all ranks at the same moment: buffers hold a few hundred beats.
        due = judged + self.pause * (self.world.rank + 1) / self.world.size
        while not self._done.is_set():
            now = time.monotonic()
            if now >= due:
                self._beat()
                due = now + self.pause
            select.select([self._socket], [], [], max(0.0, due - time.monotonic()))
            self._listen()
            now = time.monotonic()
            if now - judged < min(JUDGE_EVERY, self.pause):
                continue
            if now - judged > self.config.silence_seconds / 2:
                # This process itself was stopped for a while; what others sent meanwhile may have been dropped.
                for seen in self.seen.values():
                    seen.at = now
            judged = now
            self._tell(now)
            self._judge(now)

    def _beat(self) -> None:
        leaving = self._phase == LEAVING
        beat = {"run": self._name, "rank": self.world.rank, "where": self.where, "leaving": leaving}
        content = json.dumps(beat).encode()
        for offset in range(1, self.world.size):  # every rank begins behind itself, not all with rank 0
            try:
                self._socket.sendto(content, self._addresses[(self.world.rank + offset) % self.world.size])
            except OSError:
                continue  # no route or a full buffer: being silent is noticed over there

    def _listen(self) -> None:
        """Takes in every beat that has arrived."""
        while True:
            try:
                content, sender = self._socket.recvfrom(1024)
                beat = json.loads(content)
                if beat["run"] != self._name or beat["rank"] == self.world.rank:
                    continue
            except BlockingIOError:
                return
            except (OSError, ValueError, TypeError, KeyError):
                continue  # "connection refused" of an earlier beat, or a stranger's datagram
            rank = beat["rank"]
            self.seen[rank] = Seen(time.monotonic(), beat["where"], beat["leaving"])
            self._addresses[rank] = (sender[0], self._addresses[rank][1])  # the way that is known to work

    def _tell(self, now: float) -> None:
        """The ranks that were heard of longest ago, into the status file."""
        longest = sorted(self.seen, key=lambda rank: self.seen[rank].at)[:SHOWN]
        heard = [
            {"rank": rank, "host": self.world.peers[rank].host, "seconds": round(now - seen.at, 1), "where": seen.where}
            for rank in longest
            for seen in [self.seen[rank]]
        ]
        self.status.update(heard=heard)

    def _judge(self, now: float) -> None:
        limit = self.config.silence_seconds
        silent = [rank for rank, seen in self.seen.items() if not seen.leaving and now - seen.at > limit]
        if silent:
            since = max(now - self.seen[rank].at for rank in silent)
            last = ", ".join(sorted({self.seen[rank].where for rank in silent}))
            self._end(
                f"no sign of life from {self.world.names(silent)} for {since:.0f} s (last heard in {last}). Look at "
                "that host, its network and its log first. The same command continues from the last checkpoint"
            )
        if not self._counted and now - self._began > limit:
            self._counted = True
            unheard = {*range(self.world.size)} - {*self.seen, self.world.rank}
            if unheard and self.world.local_rank == 0:
                print(
                    f"train.py: {self.world.names([self.world.rank])}: no beat has come from "
                    f"{self.world.names(unheard)} in {limit:g} s; if UDP is blocked, its silence will not be noticed",
                    file=sys.stderr,
                    flush=True,
                )
        if now - self._since > self.config.timeout_seconds and not self._noted:
            self._noted = True
            places = [f"{self.world.names([rank])}: {seen.where}" for rank, seen in sorted(self.seen.items())]
            text = (
                f"{self.where} has taken more than {self.config.timeout_seconds:g} s "
                f"(distributed.timeout_seconds). Elsewhere: {'; '.join(places)}"
            )
            if self._phase == STEP:
                self._end(text)
            self._say(text)

    def _say(self, text: str) -> None:
        """Prints what is wrong, and the stacks of all threads into the run's folder."""
        stacks = self.run / "stacks" / f"rank_{self.world.rank:05d}.txt"
        message = f"train.py: {self.world.names([self.world.rank])} in {self.where}: {text}. Stacks: {stacks}"
        print(message, file=sys.stderr, flush=True)
        # On a host that is cut off, the folder may hang with the network; that must not keep the run from ending.
        collectives = self.run / "collectives" / f"rank_{self.world.rank}"
        writer = threading.Thread(
            target=_write_evidence, args=(stacks, collectives, message), name="stacks", daemon=True
        )
        writer.start()
        writer.join(PATIENCE)

    def _end(self, text: str) -> None:
        """Leaves the main thread in its collective, where nothing else could fetch it from."""
        self._say(text)
        self.status.end(FAILED, text)
        os._exit(1)

    def _broken(self, error: str) -> str:
        """Who it was, as far as the error tells."""
        lost = [rank for rank, peer in enumerate(self.world.peers) if f"[{peer.address}]" in error]
        others = [rank for rank in lost if rank != self.world.rank]
        who = f"to {self.world.names(others)}" if others else "to another rank"
        return (
            f"{self.world.names([self.world.rank])} in {self.where}: the connection {who} broke. Look at that log "
            "first: its processes were killed or had an error of their own. The same command continues from the last "
            f"checkpoint. ({error.splitlines()[0]})"
        )


def _write_evidence(stacks: Path, collectives: Path, message: str) -> None:
    """The stacks of all threads, and what torch has recorded of its collectives, where it has."""
    try:
        stacks.parent.mkdir(parents=True, exist_ok=True)
        with stacks.open("w", encoding="utf-8") as file:
            file.write(f"{message}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        # Named as `torchfrtrace --prefix rank_` expects it. A torch without this record has none to write.
        recorder = "_dump_nccl_trace" if dist.is_initialized() and "nccl" in dist.get_backend() else "_dump_fr_trace"
        if (record := getattr(_distributed_c10d, recorder, None)) is not None:
            collectives.parent.mkdir(parents=True, exist_ok=True)
            collectives.write_bytes(record())
    except OSError as error:
        print(f"train.py: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
