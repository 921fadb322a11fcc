"""Ports of this machine, for jobs that must not meet another one's."""

from __future__ import annotations

import socket


def free_port() -> str:
    """A TCP port of this host that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
