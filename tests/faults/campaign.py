"""One run, hurt again and again at random moments, and in the end compared with a run that was left alone.

    launch, train, injury, end    launch, resume, train, injury, end    ...    launch, resume, finish    == left alone?

A launch lives for a few random steps, so injuries fall into every phase: steps, checkpoint writes, the steps around a
planted NaN or a loss spike, the moments after a resume.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.find_model import newest_checkpoints
from tests.faults.injuries import INJURIES, LIMIT, PLANTED, Place, mount
from tests.faults.job import Job
from tests.pretrain.conftest import rows

EVERY, KEEP = 8, 3
FIRST = 2 * EVERY + 2
"""No injury before this step: there is a checkpoint to go back to, and another one if that is damaged."""
IN_QUESTION = range(81, 95)
"""Steps at which a stop that saves would give the rollback another checkpoint to go back to."""
LONGEST_GAP, RESERVE = 14, 6
"""Steps that a launch trains at most before it is hurt, and those that it may do until it feels it."""
WOUNDS = {"nan_batch": [30], "nan_gradient": [57], "loss_spike": [90, 91, 92]}
IN_DOUBT = 3
"""Steps for which a checkpoint may be put off because the loss spikes."""
START_SECONDS = 240.0
"""Until a launch trains, or has finished, on a busy machine."""


@dataclass(frozen=True)
class Record:
    """One injury, and what came of it."""

    kind: str
    step: int
    """The last step that was done before the launch ended."""
    seconds: float
    """From the injury to the end of the launch, if it ended by itself."""
    redone: int
    """Steps that the next launch did again."""


class Campaign:
    """A seeded list of injuries for one run.

    Args:
        folder: everything is written there; emptied first.
        corpus: token shards, train and valid.
        stage: ZeRO stage.
        seed: of all that is random.
        kinds: of injuries, in their order; the run has steps for all of them.
        task: the task's class, and settings of it that are not the same for all.
    """

    def __init__(
        self,
        folder: Path,
        corpus: dict[str, Path],
        stage: int,
        seed: int,
        kinds: Sequence[str],
        task: Mapping[str, str],
    ) -> None:
        self.folder, self.corpus, self.stage, self.kinds, self.task = folder, corpus, stage, kinds, task
        self.draw = random.Random(seed)
        self.steps = FIRST + (LONGEST_GAP + RESERVE) * (len(kinds) + 1)
        if self.steps <= IN_QUESTION.stop:
            raise ValueError(f"kinds: {len(kinds)} make a run of {self.steps} steps, too short for the planted wounds")
        disk = folder / "disk"
        self.place = Place(disk / "run", folder / "shards", corpus["valid"], disk / "filler")
        self.left_alone = folder / "whole"
        self.launches = 0

    def carry_out(self) -> list[Record]:
        """Hurts a run until the list is done, lets it finish, and checks what has become of it.

        Returns:
            What was injured; without a full disk where no file system may be mounted.

        Raises:
            AssertionError: a promise was broken; says which, and shows the log.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.corpus["train"], self.place.shards)
        disk = self.folder / "disk"
        mounted = mount(disk)
        try:
            self._finish(self._start(self.left_alone))
            records = self._hurt([kind for kind in self.kinds if mounted or kind != "disk full"])
            self._check_equal()
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", str(disk)], check=True)
        planted = [Record(name, WOUNDS[wound][0] + 1, 0.0, 0) for wound, name in PLANTED.items()]
        return records + planted

    def _hurt(self, kinds: Sequence[str]) -> list[Record]:
        """Injury after injury and the launch that finishes. An injury ends a launch, unless the job survives it."""
        records: list[Record] = []
        waiting = list(kinds)
        while waiting:
            ending = next((kind for kind in waiting if not INJURIES[kind].survives), waiting[-1])
            job = self._start(self.place.run, INJURIES[ending].launcher)
            try:
                self._take_up(job, records)
                while waiting:
                    kind = waiting.pop(0)
                    target = max(FIRST, job.step + self.draw.randint(1, LONGEST_GAP))
                    if INJURIES[kind].saves and target in IN_QUESTION:
                        target = IN_QUESTION.stop
                    job.wait_for_step(target, START_SECONDS)
                    seconds = self._inflict(kind, job)
                    records.append(Record(kind, job.step, seconds, 0))
                    if not INJURIES[kind].survives:
                        break
            finally:
                job.kill()
            self._treat(kind)
        last = self._start(self.place.run)
        self._take_up(last, records)
        self._finish(last)
        return records

    def _start(self, run: Path, launcher: str = "deepspeed") -> Job:
        self.launches += 1
        log = self.folder / f"{self.launches:02}.log"
        return Job(run, self._words(run), log, WOUNDS, launcher)

    def _finish(self, job: Job) -> None:
        job.wait_for_end(START_SECONDS)
        assert job.process.returncode == 0, job.text[-3000:]

    def _take_up(self, job: Job, records: list[Record]) -> None:
        """Waits until the launch trains; it must have said what it found, and redo no more steps than it may."""
        job.wait_for_step(0, START_SECONDS)
        if not records:
            return
        last = records[-1]  # the one that ended the launch before
        injury = INJURIES[last.kind]
        said = "" if injury.refuses else injury.next_says  # the refusal said it
        assert re.search(said, job.text), f"after {last.kind}: {said!r} is not said: {job.text[-3000:]}"
        redone = last.step - job.taken_up
        limit = injury.intervals * EVERY + IN_DOUBT
        assert redone <= limit, f"after {last.kind}: {redone} steps done again, at most {limit} may be"
        records[-1] = replace(last, redone=redone)

    def _inflict(self, kind: str, job: Job) -> float:
        """Hurts the job and waits for its end, which must come in time, with the right words and exit code."""
        injury = INJURIES[kind]
        job.remember()
        injury.inflict(job, self.place, self.draw)
        if injury.survives:
            job.wait_for_step(job.step + 2, START_SECONDS)
            return 0.0
        seconds = job.wait_for_end(LIMIT)
        assert re.search(injury.says, job.text), f"{kind}: {injury.says!r} is not said: {job.text[-3000:]}"
        assert (job.process.returncode == 0) == injury.exit_zero, f"{kind}: exit code {job.process.returncode}"
        return round(seconds, 1)

    def _treat(self, kind: str) -> None:
        """Damages the dead job's files if that is the injury, lets a launch refuse them, repairs what people would."""
        injury = INJURIES[kind]
        if injury.damage is not None:
            injury.damage(self.place, self.draw)
        if injury.refuses:
            refused = self._start(self.place.run)
            refused.wait_for_end(START_SECONDS)
            assert refused.process.returncode != 0, f"{kind}: trained on it"
            assert re.search(injury.next_says, refused.text), f"{kind}: {injury.next_says!r}: {refused.text[-3000:]}"
        if injury.repair is not None:
            injury.repair(self.place)

    def _check_equal(self) -> None:
        """Weights, position and every step's loss are those of the run that was left alone: no sample lost or twice."""
        newest = [newest_checkpoints(run)[0] for run in (self.left_alone, self.place.run)]
        whole, hurt = ((path / "model.safetensors").read_bytes() for path in newest)
        assert whole == hurt, "other weights than those of the run that was left alone"
        metas = [json.loads((path / "meta.json").read_text()) for path in newest]
        for name in ("step", "data_step", "skipped"):
            assert metas[0][name] == metas[1][name], name
        expected, actual = (
            [(row["step"], row["loss"], row["lr"]) for row in rows(run, "train")]
            for run in (self.left_alone, self.place.run)
        )
        assert [step for step, *_ in expected] == list(range(1, self.steps + 1))
        assert actual == expected
        events = {row["event"] for row in rows(self.place.run, "event")}
        assert {"skip", "spike", "rollback"} <= events, events

    def _words(self, run: Path) -> list[str]:
        settings: dict[str, Any] = {
            **self.task,
            "task.train": json.dumps([str(self.place.shards)]),
            "task.valid": json.dumps({"all": str(self.corpus["valid"])}),
            "task.sequence_length": 32,
            "output": run,
            "steps": self.steps,
            "batch.size": 8,
            "batch.micro_size": 2,
            "optimizer.lr": 0.01,
            "engine.zero_stage": self.stage,
            "loader.workers": 1,
            "checkpoint.every": EVERY,
            "checkpoint.keep": KEEP,
            "validation.every": self.steps,
            "validation.samples": 8,
            "guards.spike_rollback": "true",
            "distributed.silence_seconds": 12,
            "telemetry.every": 1,
            "telemetry.tensorboard": "false",
            "telemetry.progress_bar": "false",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]
