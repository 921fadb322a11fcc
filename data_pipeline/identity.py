"""Fingerprints: a short name for exactly which data, in which order, a run was trained on.

An *identity* is a JSON-able mapping that describes a source or an order by content (checksums, tokenizer hash, weights,
seeds) and never by where the files happen to lie, so data may be moved between machines and a run still resumes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_DIFFERENCES = 12


def fingerprint(identity: Mapping[str, Any]) -> str:
    """sha256, in hexadecimal, of the identity's canonical JSON (sorted keys, no spaces, no NaN)."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def explain_mismatch(old_identity: Mapping[str, Any], new_identity: Mapping[str, Any]) -> str:
    """Say which fields differ between two identities, one `path: old -> new` per line; an empty string if none does.

    At most `MAX_DIFFERENCES` lines; the rest is counted, so that two corpora of a thousand shards stay readable.
    """
    lines = list(_differences("", _plain(old_identity), _plain(new_identity)))
    if len(lines) > MAX_DIFFERENCES:
        lines = [*lines[:MAX_DIFFERENCES], f"... and {len(lines) - MAX_DIFFERENCES} more differences"]
    return "\n".join(lines)


def _plain(identity: Mapping[str, Any]) -> Any:
    """The identity as JSON gives it back, so that tuples equal the lists which a checkpoint returns."""
    return json.loads(json.dumps(identity))


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else key
            if key not in new:
                yield f"{inner}: {old[key]!r} -> absent"
            elif key not in old:
                yield f"{inner}: absent -> {new[key]!r}"
            else:
                yield from _differences(inner, old[key], new[key])
    elif _is_list(old) and _is_list(new):
        if len(old) != len(new):
            yield f"{path}: {len(old)} entries -> {len(new)} entries"
        for index, (old_item, new_item) in enumerate(zip(old, new, strict=False)):
            yield from _differences(f"{path}[{index}]", old_item, new_item)
    elif old != new and (old == old or new == new):  # .nan of a configuration equals itself here
        yield f"{path}: {old!r} -> {new!r}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
