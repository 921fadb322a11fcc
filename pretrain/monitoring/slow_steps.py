"""Notices steps that take several times as long as they used to, and says what helps.

On a CPU the usual cause is a second busy process. OpenMP's threads wait for each other by spinning, so a thread that
has lost its core keeps the others busy with nothing: a two-thread step becomes up to ten times slower (measured: under
600 tokens/s where `OMP_WAIT_POLICY=PASSIVE` gave 2,250). What it costs: two clocks and one median per step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

WINDOW, FEWEST = 200, 20
"""Steps that make the median, and how many are needed before one can stand out."""
RECENT, SLOW_AMONG = 10, 6
"""Of so many latest steps, so many must be slow."""
LASTING = 20.0
"""Seconds that this must last: what passes by itself needs no advice."""
TIMES = 3.0
"""A step is slow from this many medians on."""
PAUSE = 300.0
"""Seconds between two notes."""
SPINNING = 0.7
"""Share of its threads' time that a process which spins takes of the processor, at least."""


class SlowSteps:
    """A stopwatch over steps, in wall-clock and processor time.

    Args:
        threads: that compute in this process; 0 on an accelerator.
        wall: seconds of any clock.
        processor: seconds that the threads of this process have computed, together.
    """

    def __init__(
        self,
        threads: int,
        wall: Callable[[], float] = time.perf_counter,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self.threads, self._wall, self._processor = threads, wall, processor
        self._course: deque[float] = deque(maxlen=WINDOW)
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._shares: deque[float] = deque(maxlen=RECENT)
        self._since: float | None = None
        self._noted: float | None = None
        self._began = (0.0, 0.0)

    def begin(self) -> None:
        """A step begins."""
        self._began = self._wall(), self._processor()

    def end(self, micro_batches: int = 1) -> str:
        """The step has ended.

        Args:
            micro_batches: of this rank in it; a step of more takes longer, which says nothing about the machine.

        Returns:
            A sentence when steps have become slow, at most once in `PAUSE` seconds, else an empty string.
        """
        now = self._wall()
        seconds, computed = now - self._began[0], self._processor() - self._began[1]
        usual = median(self._course) if len(self._course) >= FEWEST else None
        self._course.append(seconds / micro_batches)
        slow = usual is not None and seconds > TIMES * usual * micro_batches
        self._recent.append(slow)
        self._shares.append(computed / max(seconds * max(self.threads, 1), 1e-9))
        if sum(self._recent) < SLOW_AMONG:
            self._since = None
            return ""
        self._since = self._since if self._since is not None else now
        pausing = self._noted is not None and now - self._noted < PAUSE
        if not slow or usual is None or pausing or now - self._since < LASTING:
            return ""
        self._noted = now
        return f"{seconds:.3g} s a step, usual until now: {usual * micro_batches:.3g} s; {self._advice()}"

    def _advice(self) -> str:
        share = median(self._shares)
        if self.threads == 0:
            return "look for another process on this device, and at its clocks and temperature"
        if share < SPINNING:
            return (
                f"its threads computed for {share:.0%} of that time and waited otherwise: for another rank, the "
                "network, or memory that was swapped out"
            )
        if self.threads == 1:
            return "another process may be using this core, or the processor runs at a lower clock"
        return (
            f"its {self.threads} threads were busy all the time, perhaps waiting for one that has lost its core to "
            "another process: OMP_WAIT_POLICY=PASSIVE, or fewer threads (OMP_NUM_THREADS), helps"
        )
