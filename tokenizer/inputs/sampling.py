"""Draws a bounded sample of documents from a stream of any length: the same documents for the same seed, in any order.

Every document gets a keyed hash of its text as its priority. The sample is the documents in order of priority up to
the first that does not fit into the byte budget: a uniform sample without replacement, whatever the order of the files.

Memory: the budget plus the document being looked at. Time: one hash a document.
"""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Texts in priority order, and how much there was to choose from."""

    texts: list[str]
    bytes: int
    """UTF-8 bytes of `texts`."""
    seen_documents: int
    seen_bytes: int


def sample_texts(texts: Iterable[str], max_bytes: int, seed: int) -> Sample:
    """Samples whole documents up to `max_bytes` UTF-8 bytes; the document of lowest priority is kept whatever its size.

    Args:
        texts: the stream; read once.
        max_bytes: budget, at least 1.
        seed: key of the hash.
    """
    key = str(seed).encode()
    kept: list[tuple[int, int, str]] = []  # a heap whose first entry is the document to give up next
    size = seen_documents = seen_bytes = 0
    limit = 2**64  # the lowest priority given up: a small document behind it must not slip into the place it left
    for text in texts:
        encoded = text.encode("utf-8")
        seen_documents += 1
        seen_bytes += len(encoded)
        priority = int.from_bytes(hashlib.blake2b(encoded, digest_size=8, key=key).digest(), "little")
        if priority >= limit:
            continue
        heapq.heappush(kept, (-priority, len(encoded), text))
        size += len(encoded)
        while size > max_bytes and len(kept) > 1:
            negative, length, _ = heapq.heappop(kept)
            size -= length
            limit = -negative
    kept.sort(key=lambda entry: (-entry[0], entry[2]))
    return Sample([text for _, _, text in kept], size, seen_documents, seen_bytes)
