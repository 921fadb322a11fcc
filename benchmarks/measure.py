"""What all benchmarks share: contenders take turns, medians come with their spread, the last line is JSON.

Taking turns matters: on a shared machine the speed drifts by more than most differences, and drift that hits every
contender alike leaves the ratio alone.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch


def take_turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every contender `repeats` times, alternating, after one unrecorded round.

    Args:
        contenders: by name, a function that does the work once and returns its figure.
        repeats: recorded rounds.

    Returns:
        The figures by name, in order.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            figure = run()
            if turn:
                figures[name].append(figure)
    return figures


def table(title: str, unit: str, figures: Mapping[str, Sequence[float]], ours: str) -> dict[str, Any]:
    """Print a table of medians with the smallest and largest figure, and our median as a multiple of each.

    Args:
        title: printed above.
        unit: of the figures.
        figures: by contender.
        ours: name of our contender.

    Returns:
        The same, for the JSON line.
    """
    own = median(figures[ours])
    width = max(map(len, figures))
    print(f"\n{title} ({unit})\n{'':{width}}  {'median':>12} {'lowest':>12} {'highest':>12}   ours / this")
    rows = {}
    for name, values in figures.items():
        middle, low, high = median(values), min(values), max(values)
        print(f"{name:{width}}  {_figure(middle)} {_figure(low)} {_figure(high)}   {own / middle:.2f}")
        rows[name] = {"median": middle, "lowest": low, "highest": high, "ratio": own / middle, "repeats": len(values)}
    return {"unit": unit, "rows": rows}


def finish(benchmark: str, tables: Mapping[str, Any], **setting: Any) -> None:
    """Print everything as one JSON line, with the machine and the packages it ran on."""
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print("\n" + json.dumps({"benchmark": benchmark, **setting, "machine": machine, "tables": tables}))


def _processor() -> str:
    """The processor's own name where Linux tells it, or else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _figure(value: float) -> str:
    return f"{value:12,.0f}" if value >= 1000 else f"{value:12.4g}"
