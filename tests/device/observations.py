"""What a pretended device writes down: where the host waits for it, which operators it is given, what they allocate."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("arch", "tokenizer", "data_pipeline", "pretrain", "eval", "examples", "common")
"""Folders of the project whose lines are named."""
TORCH = str(Path(torch.__file__).parent)
HERE = str(Path(__file__).parent)


@dataclass(frozen=True, order=True)
class Line:
    """A place in the source."""

    file: str
    """Relative to the project; of a library its path from the library's name on."""
    function: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, order=True)
class Wait:
    """One way in which the host waits for the device."""

    line: Line
    """The innermost line of this project that asked, or of a library where none did."""
    operator: str
    library: str = ""
    """The innermost line of a library, called from there, that asked; empty where the project's own line did."""


@dataclass
class Observations:
    """What happened on a device while it was watched."""

    waits: Counter[Wait] = field(default_factory=Counter)
    """How often the host waited, by line and operator."""
    operators: Counter[str] = field(default_factory=Counter)
    """Operators that ran, each at least one kernel; views are not among them."""
    attention: Counter[str] = field(default_factory=Counter)
    """Attention calls by the kernel class that a CUDA device would choose."""
    masks: Counter[tuple[int, ...]] = field(default_factory=Counter)
    """Shapes of the masks that attention was given."""
    largest: Counter[tuple[tuple[int, ...], torch.dtype]] = field(default_factory=Counter)
    """Bytes of the largest tensor of every shape and type that an operator made."""

    def kernels(self) -> int:
        """Operators in all; a lower bound of kernel launches."""
        return sum(self.operators.values())

    def waits_by_function(self) -> dict[str, int]:
        """Waits by `file:function`, which does not change when a line is added above."""
        found: Counter[str] = Counter()
        for wait, count in self.waits.items():
            found[f"{wait.line.file}:{wait.line.function}"] += count
        return dict(found)

    def square(self, length: int) -> list[tuple[int, ...]]:
        """Shapes of tensors whose last two dimensions are both `length`, the mark of dense attention, and of masks."""
        shapes = {shape for shape, _ in self.largest} | set(self.masks)
        return sorted(shape for shape in shapes if len(shape) > 2 and shape[-2:] == (length, length))

    def report(self, top: int = 5) -> str:
        """Lines for a person."""
        sizes = sorted(self.largest.items(), key=lambda item: -item[1])[:top]
        return "\n".join(
            [
                f"{self.kernels()} operators, {sum(self.waits.values())} host waits",
                *(
                    f"  waits {count} x {wait.operator}  {wait.line}  {wait.library}"
                    for wait, count in sorted(self.waits.items())
                ),
                *(f"  attention {count} x {kernel}" for kernel, count in sorted(self.attention.items())),
                *(f"  {size:,} bytes  {list(shape)} {dtype}" for (shape, dtype), size in sizes),
            ]
        )

    def wait(self, operator: str) -> None:
        """The host waits here, for `operator`."""
        line, library = asking_lines(sys._getframe(1))
        self.waits[Wait(line, operator, library)] += 1

    def made(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """An operator made a tensor."""
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        self.largest[shape, dtype] = size


def asking_lines(frame: FrameType | None) -> tuple[Line, str]:
    """The innermost line of this project on the stack, and the innermost of a library above it; torch is left out."""
    library: Line | None = None
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((TORCH, HERE, "<")):
            where = Path(path)
            if where.is_relative_to(ROOT) and where.relative_to(ROOT).parts[0] in ROOMS:
                line = Line(where.relative_to(ROOT).as_posix(), frame.f_code.co_name, frame.f_lineno)
                return line, str(library or "")
            if library is None and "site-packages" in where.parts:
                inside = where.parts[where.parts.index("site-packages") + 1 :]
                library = Line("/".join(inside), frame.f_code.co_name, frame.f_lineno)
        frame = frame.f_back
    return library or Line("?", "?", 0), ""
