"""What watching a run costs, as a share of its steps, on the ranks of a real launch:

    deepspeed --num_accelerators 2 benchmarks/watching.py --config RUN/config.yaml --output NEW --steps 100

RUN is any run (`make quickstart` leaves one in runs/quickstart/train); its data is used. Every part is timed where the
trainer calls it, the beating thread by its processor time. NEW is a folder that is not there yet.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain.command_line import parse
from pretrain.guards import DivergenceGuard
from pretrain.monitoring.status_file import RunStatus
from pretrain.ranks.heartbeat import Heartbeat
from pretrain.ranks.stragglers import PhaseTimes, StragglerWatch
from pretrain.trainer import Trainer

STEP, BEATS, CLOCKS = "step", "beats (processor time)", "clocks of phases"
PARTS: dict[str, list[tuple[type, str]]] = {
    STEP: [(Trainer, "_step")],
    "heartbeat and status": [(Heartbeat, "enter"), (RunStatus, "row")],
    "loss spikes": [(DivergenceGuard, "look")],
    "stragglers": [(PhaseTimes, "step"), (PhaseTimes, "read"), (StragglerWatch, "look")],
}
LOOPS = 10_000
spent: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)


def timed(owner: type, method: str, part: str) -> None:
    """Lets a method add its seconds to a part."""
    original: Callable[..., Any] = getattr(owner, method)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments, **named)
        finally:
            spent[part] += time.perf_counter() - began
            calls[part] += 1

    setattr(owner, method, wrapper)


def time_beats() -> None:
    """Lets the thread that beats add its processor time."""
    watch = Heartbeat._watch

    def watching(self: Heartbeat) -> None:
        watch(self)
        spent[BEATS] = time.thread_time()

    Heartbeat._watch = watching  # type: ignore[method-assign]


def seconds_of_a_clock(times: PhaseTimes) -> float:
    """Of entering and leaving a phase."""
    began = time.perf_counter()
    for _ in range(LOOPS):
        with times.during("forward"):
            pass
    return (time.perf_counter() - began) / LOOPS


def main() -> None:
    for part, methods in PARTS.items():
        for owner, method in methods:
            timed(owner, method, part)
    time_beats()
    quiet = ["--telemetry.tensorboard", "false", "--telemetry.progress_bar", "false", "--hooks", "[]"]
    config, _ = parse([*sys.argv[1:], *quiet, "--checkpoint.every", "1000000", "--validation.every", "1000000"])
    trainer = Trainer(config)
    trainer.run()
    if not trainer.world.is_main:
        return
    micro_batches = config.batch.size // config.batch.micro_size // trainer.world.size
    spent[CLOCKS] = calls[STEP] * 3 * micro_batches * seconds_of_a_clock(PhaseTimes(trainer.world.device))
    print(f"\n{calls[STEP]} steps of {1000 * spent[STEP] / calls[STEP]:.1f} ms, {trainer.world.size} ranks, rank 0")
    print(f"{'part':28}{'us a step':>12}{'% of a step':>14}\n{'-' * 54}")
    parts = [name for name in spent if name != STEP]
    for name, seconds in [*((name, spent[name]) for name in parts), ("all", sum(spent[name] for name in parts))]:
        print(f"{name:28}{1e6 * seconds / calls[STEP]:12.1f}{100 * seconds / spent[STEP]:14.3f}")


if __name__ == "__main__":
    main()
