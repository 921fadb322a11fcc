"""What the ranks of a run must have in common before the first step, and whose host differs where they do not.

Data may lie at another path on every host: identities are compared, which are made of checksums and never of paths.
The run's own folder must be the same everywhere, because each rank writes its part of every checkpoint there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.identity import explain_mismatch, fingerprint
from pretrain.errors import ConfigurationError
from pretrain.ranks.world import World

PATIENCE = 10.0
"""Seconds for a new file to appear on the other hosts; network file systems remember for a while that it was absent."""


def agree_on_data(world: World, identity: Mapping[str, Any]) -> None:
    """Refuses to train where ranks see different data, order or task. Collective.

    Args:
        world: the ranks.
        identity: what this rank trains on, by content (JSON-able).

    Raises:
        ConfigurationError: on every rank; names the hosts that differ from rank 0's, and what differs.
    """
    fingerprints = world.gather(fingerprint(identity))
    different = [rank for rank, name in enumerate(fingerprints) if name != fingerprints[0]]
    if not different:
        return
    # Identities of large corpora are long; only two of them travel.
    asked = (0, different[0])
    identities = world.gather(identity if world.rank in asked else None)
    found = explain_mismatch(identities[asked[0]], identities[asked[1]])
    raise ConfigurationError(
        f"{world.names(different)} would train on other data than {world.names([0])}:\n{found}\n"
        "Paths may differ between hosts, contents may not: copy the same shards to every host, or name the right ones."
    )


def check_shared_output(world: World, run: Path) -> None:
    """Refuses a run folder that is not one and the same on all hosts. Collective.

    Raises:
        ConfigurationError: on every rank; names the hosts that do not see what rank 0 writes.
    """
    if len({peer.host for peer in world.peers}) < 2:
        return
    (name, *_) = world.gather(f".shared-{secrets.token_hex(8)}")
    if world.is_main:
        run.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    world.barrier()
    deadline = time.monotonic() + PATIENCE
    while not (found := (run / name).exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [rank for rank, sees in enumerate(world.gather(found)) if not sees]
    if world.is_main:
        (run / name).unlink()
    if blind:
        raise ConfigurationError(
            f"output {run}: {world.names(blind)} does not see what {world.names([0])} writes there; choose a folder on "
            "storage that all hosts share (data may lie on each host's own disk)"
        )
