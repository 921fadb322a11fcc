"""Damaged files: bytes changed anywhere, and changes that know JSON and so leave a text that can be parsed.

A mutation is a few plain numbers and values, and is applied to the file by arithmetic: the same ones, the same damage.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

RAW = {
    "@deep@": "[" * 20_000 + "]" * 20_000,
    "@deep mapping@": '{"a":' * 3_000 + "1" + "}" * 3_000,
    "@below the limit@": "[" * 60 + "]" * 60,
    "@long number@": "9" * 5_000,
    "@infinite@": "1e999",
    "@wide@": "[" + "0," * 3_000 + "0]",
}
"""Written in place of these texts: what Python's own JSON writer could not write, or only slowly."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 255, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30)),
    *(0.5, -0.5, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "é文", "x" * 100_000, "../../etc/passwd", "/etc/passwd", "..", "a/../../b", "a\0b", "\ud800", "\n"),
    *("0" * 64, "batch", "sample", "tokens", "sentences", "words", "vq", "fsq", "vqgan", "class_path"),
    *([], {}, [0], [-1], [2**70], [None], [[]], {"": 0}, {"a": 1}, {"class_path": "os.system"}),
    *RAW,
)
Mutation = tuple[bool, list[tuple[Any, ...]]]
"""Whether it knows JSON, and the changes."""
KEYS = ("", "x", "__class__", "class_path", "../x", "sha256", "kind", "x" * 1_000)


def draw_mutation(random: Random, structured: bool) -> Mutation:
    """What is done to one file.

    Either one to four changes of bytes (flip, truncation, insertion, deletion, a chunk doubled, two chunks swapped), or
    one to three of JSON values (replaced, deleted, doubled, renamed, a new one added).
    """
    if structured:
        actions = ("replace", "replace", "replace", "delete", "double", "rename", "add")
        return True, [
            (random.choice(actions), random.getrandbits(16), random.choice(VALUES), random.choice(KEYS))
            for _ in range(random.randint(1, 3))
        ]
    actions = ("flip", "flip", "set", "cut", "insert", "delete", "double", "swap")
    return False, [
        (random.choice(actions), random.getrandbits(24), random.getrandbits(24), random.getrandbits(8))
        for _ in range(random.randint(1, 4))
    ]


def apply(content: bytes, mutation: Mutation, frame: Frame | None) -> bytes:
    """The damaged content; `frame` finds the JSON in it."""
    structured, edits = mutation
    if not structured or frame is None:
        for edit in edits:
            content = _edit_bytes(content, *edit)
        return content
    text, rebuild = frame(content)
    value = json.loads(text)
    for edit in edits:
        value = _edit_json(value, *edit)
    text = json.dumps(value)
    for placeholder, raw in RAW.items():
        text = text.replace(json.dumps(placeholder), raw)
    return rebuild(text.encode("utf-8", "surrogatepass"))


Frame = Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]]
"""The JSON in a file, and what puts another in its place."""


def whole(content: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """A JSON file."""
    return content, lambda text: text


def header(content: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """A safetensors file: eight bytes of length, a JSON header, the tensors."""
    (size,) = struct.unpack("<Q", content[:8])
    rest = content[8 + size :]
    return content[8 : 8 + size], lambda text: struct.pack("<Q", len(text)) + text + rest


def metadata(content: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """A safetensors file: the JSON that is the only text of its metadata."""
    head, rebuild = header(content)
    fields = json.loads(head)
    ((name, text),) = fields["__metadata__"].items()

    def put(changed: bytes) -> bytes:
        readable = changed.decode("utf-8", "replace")
        return rebuild(json.dumps(fields | {"__metadata__": {name: readable}}).encode())

    return text.encode(), put


def _edit_bytes(content: bytes, action: str, a: int, b: int, value: int) -> bytes:
    if not content:
        return bytes([value])
    first, second = sorted((a % len(content), b % len(content)))
    chunk = content[first : min(second, first + 64)]
    match action:
        case "flip":
            return content[:first] + bytes([content[first] ^ (1 << value % 8)]) + content[first + 1 :]
        case "set":
            return content[:first] + bytes([value]) + content[first + 1 :]
        case "cut":
            return content[:first]
        case "insert":
            return content[:first] + bytes([value]) * (1 + b % 16) + content[first:]
        case "delete":
            return content[:first] + content[first + len(chunk) + 1 :]
        case "double":
            return content[:first] + chunk + content[first:]
    middle = content[first + len(chunk) : second]
    return content[:first] + content[second : second + 64] + middle + chunk + content[second + 64 :]


def _edit_json(value: Any, action: str, which: int, new: Any, key: str) -> Any:
    places, new = list(_places(value)), copy.deepcopy(new)  # the drawn values stay as they are
    if not places:
        return new
    parent, at = places[which % len(places)]
    if action == "delete":
        del parent[at]
    elif action == "double" and isinstance(parent, list):
        parent.insert(at, parent[at])
    elif action == "rename" and isinstance(parent, dict):
        parent[key] = parent.pop(at)
    elif action == "add" and isinstance(parent, dict):
        parent[key] = new
    else:
        parent[at] = new
    return value


def _places(value: Any) -> Any:
    """(container, key or index) of every value inside."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, inner in list(entries):
        yield value, at
        yield from _places(inner)
