"""Reports of studies: a template of templates/ filled with what the study has computed.

study.md.j2 holds what all reports begin with, macros.md.j2 the tables. Filters beside Jinja's own: ``f`` (a format of
Python's), ``interval``, and of `eval/grid/statistics.py` ``spread`` (mean ± deviation over seeds) and ``verdict``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Protocol

from eval.grid.grid import Grid, cells, read_mapping
from eval.grid.statistics import Measured, spread, verdict

TEMPLATES = Path(__file__).with_name("templates")


class Interval(Protocol):
    """What has two ends."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def interval(found: Interval) -> str:
    """``-0.1000 to +0.1000``; nothing where no seeds or images could give one."""
    return f"{found.low:+.4f} to {found.high:+.4f}" if math.isfinite(found.low) else ""


def plot_folder(grid: Grid) -> Path:
    """The folder of the report's plots, beside the report and called like it; it is made here."""
    folder = Path(grid.report).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_report(study: str, grid: Grid, config: str, measured: Measured, **found: Any) -> Path:
    """Fills STUDY.md.j2 and writes it to the grid's report.

    Args:
        study: the command of `python -m eval`, and the template's name.
        grid: the grid.
        config: its YAML; definitions that are null there have to be given on the command line, and are named.
        measured: the cells that the report tells of.
        found: what the template needs besides these and `folder`, the name of the plots' folder.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"f": format, "spread": spread, "interval": interval, "verdict": verdict}
    definitions = read_mapping(Path(config)).get("definitions") or {}
    given = [f"{name}={name.upper()}" for name, value in definitions.items() if value is None]
    found |= {
        "grid": grid,
        "measured": measured,
        "command": " ".join([f"python -m eval {study} --config {config}", *(["--define", *given] if given else [])]),
        "done": sum(map(len, measured.values())),
        "planned": len(cells(grid)),
        "folder": plot_folder(grid).name,
    }
    text = environment.get_template(f"{study}.md.j2").render(found)
    path = Path(grid.report)
    path.write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n", encoding="utf-8")
    return path
