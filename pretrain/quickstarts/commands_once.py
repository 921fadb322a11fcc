"""Commands one after the other, each done once: the quick start, and everything that a ladder needs before it trains.

A finished step leaves a mark with its command line; the next call skips it unless its command, or a step before it, has
changed. A step that was cut off is called again and resumes by itself.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from pretrain.accelerator_presence import told_accelerator
from pretrain.interruption import run_to_end
from pretrain.ports import free_port


class StepFailed(InputError, RuntimeError):
    """A command failed; its own output says why."""

    exit_code = 1


class Pipeline:
    """Runs commands one after the other and remembers which are done."""

    def __init__(self, directory: Path) -> None:
        self.marks = directory / ".done"
        self.marks.mkdir(parents=True, exist_ok=True)
        self.upstream: list[str] = []
        """Every command so far: what the next step's input was made by."""

    def run(self, name: str, title: str, output: Path, *command: str, continues: bool = False) -> None:
        """Runs `command` unless the same command, after the same commands, is done already.

        `output` is what the step makes. It is removed first when other commands have made it (a step that `continues`
        keeps it if only its own command has changed). What a kill left unfinished stays: every step resumes its work.

        Raises:
            StepFailed: the command's exit code is not zero.
        """
        mark = self.marks / f"{name}.json"
        before = json.loads(mark.read_text()) if mark.exists() else None
        now = {"command": list(command), "upstream": list(self.upstream)}
        self.upstream.append(shlex.join(command))
        print(f"\n== {title}\n   {shlex.join(shorten(command))}", flush=True)
        same_input = before is not None and before["upstream"] == now["upstream"]
        same = same_input and before is not None and before["command"] == now["command"]
        if same and before is not None and "seconds" in before:
            print("   done before, skipped", flush=True)
            return
        if not (same or (same_input and continues)):
            remove(output)
        mark.write_text(json.dumps(now))
        started = time.perf_counter()
        code = run_to_end(on_free_port(command), environment())
        if code:
            raise StepFailed(
                f"the step '{title}' failed (exit code {code}); its message is above. Call the same again to go on."
            )
        seconds = round(time.perf_counter() - started, 1)
        mark.write_text(json.dumps(now | {"seconds": seconds}))
        print(f"   {seconds:.0f} s", flush=True)


def remove(path: Path) -> None:
    """Removes a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shorten(command: tuple[str, ...]) -> list[str]:
    """The command as a user would type it: without the folder of the environment."""
    return [Path(word).name if Path(word).parent == Path(sys.executable).parent else word for word in command]


def deepspeed_launcher(ranks: int, *options: str) -> list[str]:
    """Begins a command that runs a script on this machine's first `ranks` accelerators (without one: processes)."""
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_accelerators", str(ranks), "--log_level", "error", *options]


def on_free_port(command: Sequence[str]) -> list[str]:
    """The command; if it is DeepSpeed's launcher, with a port of its own: its default is the same for every job.

    Not part of what a user types or of what says whether a step is done, because it is another one each time.
    """
    if Path(command[0]).name != "deepspeed" or "--master_port" in command:
        return list(command)
    return [command[0], "--master_port", free_port(), *command[1:]]


def environment() -> dict[str, str]:
    """This environment, offline unless the user asked otherwise; DeepSpeed is told where there is no accelerator."""
    return {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", **told_accelerator(), **os.environ}
