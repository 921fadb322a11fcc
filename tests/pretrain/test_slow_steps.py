"""Steps that have become slow are noticed, and what is said fits what the processor did meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pretrain.monitoring.slow_steps import FEWEST, PAUSE, RECENT, SlowSteps


class Machine:
    """Steps of given lengths, of which a share was computed."""

    def __init__(self, threads: int) -> None:
        self.wall = self.processor = 0.0
        self.threads = threads
        self.watch = SlowSteps(threads, lambda: self.wall, lambda: self.processor)

    def step(self, seconds: float, busy: float = 1.0, micro_batches: int = 1) -> str:
        self.watch.begin()
        self.wall += seconds
        self.processor += seconds * self.threads * busy
        return self.watch.end(micro_batches)

    def steps(self, count: int, seconds: float, busy: float = 1.0) -> list[str]:
        return [said for _ in range(count) if (said := self.step(seconds, busy))]


def test_spinning_threads_are_noted_once_with_what_helps():
    machine = Machine(threads=2)
    assert machine.steps(FEWEST, 1.0) == []
    (said,) = machine.steps(RECENT, 8.0)
    assert "8 s a step, usual until now: 1 s" in said and "OMP_WAIT_POLICY=PASSIVE" in said


@pytest.mark.parametrize(
    ("threads", "busy", "words"),
    [(2, 0.1, "computed for 10% of that time"), (1, 1.0, "another process may be using this core"), (0, 0.0, "device")],
)
def test_the_advice_fits_what_the_processor_did(threads, busy, words):
    machine = Machine(threads)
    machine.steps(FEWEST, 1.0, busy)
    (said,) = machine.steps(RECENT, 8.0, busy)
    assert words in said and "PASSIVE" not in said


def test_a_few_slow_steps_and_slowly_growing_ones_are_not_noted():
    machine = Machine(threads=2)
    machine.steps(FEWEST, 1.0)
    for _ in range(10):
        assert machine.steps(2, 9.0) == machine.steps(8, 1.0) == []
    assert [said for step in range(400) if (said := machine.step(1 + step / 50))] == []


def test_larger_steps_are_not_slow_ones_but_slow_ones_among_them_are():
    machine = Machine(threads=2)
    machine.steps(FEWEST, 1.0)
    assert [said for _ in range(FEWEST) if (said := machine.step(8.0, micro_batches=8))] == []
    said = [text for _ in range(RECENT) if (text := machine.step(40.0, micro_batches=8))]
    assert len(said) == 1 and "40 s a step, usual until now: 8 s" in said[0]


def test_what_passes_within_seconds_is_not_noted():
    machine = Machine(threads=2)
    machine.steps(FEWEST * 5, 0.01)
    assert machine.steps(RECENT * 4, 0.1) == []


def test_noted_again_only_after_a_pause():
    machine = Machine(threads=2)
    machine.steps(FEWEST * 5, 1.0)
    slow = 10.0
    said = [machine.wall for _ in range(90) if machine.step(slow)]
    assert len(said) > 1 and all(later - earlier >= PAUSE for earlier, later in pairwise(said))


def test_nothing_stands_out_at_the_start():
    machine = Machine(threads=2)
    assert machine.steps(3, 1.0) + machine.steps(FEWEST - 4, 50.0) == []
