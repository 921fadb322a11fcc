"""Which launcher started this rank, whether it is still there, and how long it lets a rank save.

    deepspeed (front end) ── launch.py ── rank    SIGTERM ends the front end alone, and says nothing to anybody
                             launch.py            signals its ranks one after the other, kills each after 30 s
    torchrun ── rank                              signals its ranks together, kills them after 30 s, or what
                                                  TORCH_ELASTIC_SHUTDOWN_TIMEOUT says
    srun ── slurmstepd ── rank                    Slurm signals everything, --signal ahead of the end of time, and kills
                                                  it KillWait (30 s) after that end

Nobody else would ever end ranks whose launcher is gone: they would train on and hold the devices. What it costs to ask:
one system call, and under DeepSpeed one small read of /proc.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

FRONT_ENDS = frozenset({"deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner"})
"""Names under which DeepSpeed's front end runs; its child is launch.py, except over ssh."""
LAUNCH = "deepspeed.launcher.launch"
GRACE = 30.0
"""Seconds: a constant in DeepSpeed's launch.py, and the default of torchrun and of Slurm's KillWait."""
GRACE_VARIABLE = "TINYPI_GRACE_SECONDS"
"""What configs/launch/slurm.sh says about the time that its job gives a save."""
TORCHRUN_VARIABLES = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
"""Where torchrun finds its own, the first one first."""


@dataclass(frozen=True)
class Launcher:
    """Who started this process as a rank."""

    name: str
    """`deepspeed`, `torchrun`, `Slurm`, or `launcher` where none of them is recognised."""
    process: int
    """The parent of this process."""
    front_end: int | None = None
    """The parent of `process`, where that is DeepSpeed's front end: when it ends, `process` is not told."""
    grace: float | None = None
    """Seconds between being told to stop and being killed; None where nothing is known."""

    @property
    def gone(self) -> int | None:
        """The process that should be above this one and is not; None while all are there."""
        if os.getppid() != self.process:
            return self.process
        if self.front_end is not None and _parent(self.process) != self.front_end:
            return self.front_end
        return None

    def too_short(self, seconds: float) -> str | None:
        """What to say where a stop, of which `seconds` are known, takes longer than this launcher waits; else None."""
        if self.grace is None or seconds <= self.grace:
            return None
        return (
            f"finishing a step and saving took {seconds:.0f} s, but {self.name} kills its ranks {self.grace:.0f} s "
            f"after it was told to stop: {self._remedy()}"
        )

    def _remedy(self) -> str:
        if self.name == "torchrun":
            return f"start it with {TORCHRUN_VARIABLES[1]}=600 in its environment, which torch 2.14 knows"
        if self.name == "Slurm":
            return "ask for an earlier signal (#SBATCH --signal=B:USR1@600, and GRACE in configs/launch/slurm.sh)"
        return (
            f"send SIGTERM to one rank (`kill {os.getpid()}`) instead; all ranks then save and leave, without a limit"
        )


def find_launcher(launched: bool, environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """The launcher above this process, as long as it is there; ask early.

    Args:
        launched: this process is one of several ranks, so somebody must have started it as one.
        environment: of this process.

    Returns:
        None for a process that nobody started as a rank: its parent, a shell perhaps, may end before it.
    """
    parent = os.getppid()
    if LAUNCH in _words(parent):
        above = _parent(parent)
        front = above is not None and not FRONT_ENDS.isdisjoint(Path(word).name for word in _words(above)[:3])
        return Launcher("deepspeed", parent, above if front else None, GRACE)
    if "TORCHELASTIC_RUN_ID" in environment:
        given = next((environment[name] for name in TORCHRUN_VARIABLES if environment.get(name)), None)
        return Launcher("torchrun", parent, grace=float(given) if given and _torchrun_listens() else GRACE)
    if "SLURM_STEP_ID" in environment and launched:
        return Launcher("Slurm", parent, grace=float(environment.get(GRACE_VARIABLE) or GRACE))
    return Launcher("launcher", parent) if launched else None


def _torchrun_listens() -> bool:
    """Whether the installed torchrun reads how long to wait; torch is not imported, which takes seconds."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None, "torch is not installed"
    source = Path(spec.origin).parent / "distributed" / "launcher" / "api.py"
    return source.is_file() and TORCHRUN_VARIABLES[1] in source.read_text(encoding="utf-8")


def _words(process: int) -> list[str]:
    """The command line of a process; empty where it cannot be read."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _parent(process: int) -> int | None:
    """The parent of a process; None where it cannot be read."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return None
    return int(after_name.split()[1])
