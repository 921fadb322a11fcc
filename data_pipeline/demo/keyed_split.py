"""Which side of a split something falls on: a keyed hash of its content, so order and names do not matter."""

from __future__ import annotations

import hashlib

RANGE = 2**64
"""Hashes lie below it."""


def keyed_hash(content: bytes, seed: int) -> int:
    """A number below `RANGE`, uniform over contents, another one for another seed."""
    digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "little")


def is_held_out(content: bytes, fraction: float, seed: int) -> bool:
    """True for about `fraction` of all contents."""
    return keyed_hash(content, seed) < fraction * RANGE
