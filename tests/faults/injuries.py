"""What can happen to a job, and what it must then say.

An injury is inflicted on a running job, or on its files once it is dead. Each tells how the launch must end (its exit
code, and words in its log) and what the next launch must say before it goes on.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.find_model import newest_checkpoints
from pretrain.monitoring.status_command import read
from tests.faults.job import Job, wait_until

LIMIT = 90.0
"""Seconds in which a hurt job must have ended, whatever happened."""


@dataclass(frozen=True)
class Place:
    """Where a campaign happens."""

    run: Path
    """Run directory, on a file system of its own where that is possible."""
    shards: Path
    """The folder of token shards that the configuration names."""
    other_shards: Path
    """Shards of other text."""
    filler: Path
    """A file that fills the run's file system while it exists."""


@dataclass(frozen=True)
class Injury:
    """One kind."""

    inflict: Callable[[Job, Place, random.Random], None]
    """Hurts a job that trains."""
    says: str = ""
    """Regular expression for the log of the hurt launch; empty where nobody is left to say anything."""
    exit_zero: bool = False
    """Whether the launch is to end without an error."""
    damage: Callable[[Place, random.Random], None] | None = None
    """What happens to the files of the dead job."""
    next_says: str = ""
    """Regular expression for the log of the next launch."""
    refuses: bool = False
    """Whether that next launch must end without having trained, and go on once `repair` is done."""
    repair: Callable[[Place], None] | None = None
    survives: bool = False
    """Whether the job goes on as if nothing had happened."""
    saves: bool = False
    """Whether the job makes a checkpoint before it ends."""
    launcher: str = "deepspeed"
    """What starts the job that it happens to."""
    intervals: int = 1
    """Checkpoint intervals that may be lost."""


def kill_one(job: Job, place: Place, draw: random.Random) -> None:
    draw.choice(job.ranks()).kill()


def kill_all(job: Job, place: Place, draw: random.Random) -> None:
    job.kill()
    assert read(place.run)["state"] == "killed"


def kill_launcher(job: Job, place: Place, draw: random.Random) -> None:
    job.remember()
    for process in job.launchers():
        process.kill()


def terminate(job: Job, place: Place, draw: random.Random) -> None:
    for rank in job.ranks():
        rank.send_signal(signal.SIGTERM)


def terminate_launcher(job: Job, place: Place, draw: random.Random) -> None:
    """SIGTERM to the process that was started by hand."""
    job.process.terminate()


def terminate_on_node(job: Job, place: Place, draw: random.Random) -> None:
    """SIGTERM to DeepSpeed's launcher of one node, as its front end sends it over ssh."""
    job.launchers()[1].terminate()


def press_ctrl_c(job: Job, place: Place, draw: random.Random) -> None:
    """SIGINT to the process group, as a terminal sends it to what runs in the foreground."""
    os.killpg(job.process.pid, signal.SIGINT)


def end_of_time(job: Job, place: Place, draw: random.Random) -> None:
    """SIGTERM to every process, and again: a batch system's way."""
    for pause in (1.0, 0.0):
        for process in job.alive():
            with suppress(psutil.Error):  # it has just ended
                process.terminate()
        time.sleep(pause)


def stop_one(job: Job, place: Place, draw: random.Random) -> None:
    job.remember()
    draw.choice(job.ranks()).send_signal(signal.SIGSTOP)


def kill_worker(job: Job, place: Place, draw: random.Random) -> None:
    draw.choice(job.workers()).kill()


def fill_disk(job: Job, place: Place, draw: random.Random) -> None:
    with place.filler.open("wb", buffering=0) as file, suppress(OSError):  # a buffer would fail once more at its end
        while True:
            file.write(bytes(1 << 16))


def empty_disk(place: Place) -> None:
    place.filler.unlink()


def start_second(job: Job, place: Place, draw: random.Random) -> None:
    """The first job holds its breath meanwhile, or it would be done before the second has even begun."""
    for rank in job.ranks():
        rank.suspend()
    second = Job(place.run, job.words, job.log.with_suffix(".second"), {})
    wait_until(lambda: second.process.poll() is not None, LIMIT, "the end of the second job")
    for rank in job.ranks():
        rank.resume()
    assert second.process.returncode != 0 and "another job trains there" in second.text, second.text[-2000:]


def set_clock_back(job: Job, place: Place, draw: random.Random) -> None:
    for rank in job.ranks():
        rank.send_signal(signal.SIGUSR1)


def truncate_checkpoint(place: Place, draw: random.Random) -> None:
    path = _some_file(place, draw)
    with path.open("r+b") as file:
        file.truncate(draw.randrange(path.stat().st_size))


def flip_bit(place: Place, draw: random.Random) -> None:
    path = _some_file(place, draw)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _some_file(place: Place, draw: random.Random) -> Path:
    newest = newest_checkpoints(place.run)[0]
    return draw.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))


def point_nowhere(place: Place, draw: random.Random) -> None:
    (place.run / "checkpoints" / "latest").write_text("step_99999999")


def truncate_shard(place: Place, draw: random.Random) -> None:
    shutil.copytree(place.shards, _kept(place))
    shard = draw.choice(sorted(place.shards.glob("*.ds")))
    with shard.open("r+b") as file:
        file.truncate(draw.randrange(shard.stat().st_size))


def replace_shards(place: Place, draw: random.Random) -> None:
    place.shards.rename(_kept(place))
    shutil.copytree(place.other_shards, place.shards)


def restore_shards(place: Place) -> None:
    shutil.rmtree(place.shards)
    _kept(place).rename(place.shards)


def _kept(place: Place) -> Path:
    return place.shards.with_name("kept")


def mount(folder: Path) -> bool:
    """Gives `folder` a file system of 48 MB of its own, where this is allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


LOST_PEER = "the connection to .* broke|no sign of life from"
STOPPED = "(SIGTERM|SIGINT|another rank was stopped): .*saved.*, leaving"
LAUNCHER_GONE = r"the launcher \(process \d+\) is gone: .*saved.*, leaving"
PASSED_OVER = "passing over .*step_"
SHARD_SIZE = r"\.ds: .*(short|truncated|bytes)"
OTHER_DATA = "other data or another model|sha256"

INJURIES = {
    "SIGKILL of one rank": Injury(kill_one, LOST_PEER + "|return code = -9"),
    "SIGKILL of all": Injury(kill_all),
    "SIGKILL of the launcher": Injury(kill_launcher, LAUNCHER_GONE, saves=True, intervals=0),
    "SIGTERM": Injury(terminate, "SIGTERM: .*saved.*, leaving", exit_zero=True, saves=True, intervals=0),
    "SIGTERM to torchrun": Injury(terminate_launcher, STOPPED, saves=True, intervals=0, launcher="torchrun"),
    "SIGTERM to deepspeed": Injury(terminate_launcher, LAUNCHER_GONE, saves=True, intervals=0),
    "SIGTERM to deepspeed's launch.py": Injury(terminate_on_node, STOPPED, saves=True, intervals=0),
    "Ctrl-C": Injury(press_ctrl_c, STOPPED, saves=True, intervals=0),
    "SIGTERM to every process, twice": Injury(end_of_time, STOPPED, saves=True, intervals=0, launcher="torchrun"),
    "SIGSTOP of one rank": Injury(stop_one, "no sign of life from host .* for"),
    "worker process killed": Injury(kill_worker, "DataLoader worker .*(killed|exited)"),
    "disk full": Injury(fill_disk, "No space left|disk is full", repair=empty_disk),
    "second job in the folder": Injury(start_second, survives=True),
    "clock set back": Injury(set_clock_back, survives=True),
    "checkpoint truncated": Injury(kill_all, damage=truncate_checkpoint, next_says=PASSED_OVER, intervals=2),
    "checkpoint's bit flipped": Injury(kill_all, damage=flip_bit, next_says=PASSED_OVER, intervals=2),
    "latest points nowhere": Injury(kill_all, damage=point_nowhere),
    "shard truncated": Injury(
        kill_all, damage=truncate_shard, next_says=SHARD_SIZE, refuses=True, repair=restore_shards
    ),
    "shards replaced": Injury(
        kill_all, damage=replace_shards, next_says=OTHER_DATA, refuses=True, repair=restore_shards
    ),
}
PLANTED = {"nan_batch": "NaN in a batch", "nan_gradient": "NaN in a gradient", "loss_spike": "loss spike"}
"""Wounds of the data, by the name that `tests/faults/victim.py` knows; every run of a campaign meets them."""
