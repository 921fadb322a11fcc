"""Measures one candidate of a bench: a launch of `pretrain/train.py` through `deepspeed`, whose telemetry is read.

    RESULTS/candidates/KEY/config.yaml   the run's configuration with the candidate's setting, and without checkpoints,
                                         validation, TensorBoard and its own hooks, which are not measured
                           run/          its output: the run's own folder is never touched
                           log.txt       what all ranks printed
                           result.json   the measurement, once there is one

KEY names everything that a measurement depends on: configuration, ranks, steps, repetition, machine. Measured before
means not measured again, so an interrupted bench goes on.

Every candidate has a launch of its own, though several in turn would save the seconds in which Python starts: a rank
that ran out of memory or lost its device cannot be trusted with the next one, peak memory is that of a process, and
what torch.compile or a communicator keeps would help whoever comes later.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import yaml
from deepspeed.accelerator import get_accelerator
from tqdm import tqdm

from common.atomic_files import write_whole
from data_pipeline.identity import fingerprint
from pretrain.config import TrainConfig
from pretrain.engine import engine_at_stage
from pretrain.planning.bench import Candidate, Measurement
from pretrain.planning.bench_hook import LEAST_TIMED, NAME, BenchHook
from pretrain.planning.options import BenchConfig
from pretrain.quickstarts.commands_once import deepspeed_launcher, environment, on_free_port

NEVER = 2**31
"""An interval that no measurement reaches."""
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|MemoryError|return code = -9|signal 9", re.IGNORECASE)
"""What torch, Python and, where Linux ended a process, the launcher say of it."""
POLL_SECONDS = 0.5


def settings(config: TrainConfig, candidate: Candidate) -> dict[str, Any]:
    """The fields of a configuration that make it the candidate."""
    engine = engine_at_stage(config.engine, candidate.zero_stage)
    return {
        "batch": {"micro_size": candidate.micro_size},
        "engine": {
            "zero_stage": candidate.zero_stage,
            "precision": candidate.precision,
            "compile": candidate.compile,
            "offload": asdict(engine.offload),
        },
    }


class Runner:
    """Measures candidates, each once.

    Args:
        config: the run.
        text: its complete YAML.
        options: what is measured, and for how long.
        ranks: processes.
        results: folder of the bench.
        progress: bar that shows what is being done.
    """

    def __init__(
        self, config: TrainConfig, text: str, options: BenchConfig, ranks: int, results: Path, progress: tqdm
    ) -> None:
        self.config, self.text, self.options, self.ranks = config, text, options, ranks
        self.results, self.progress = results, progress
        self._began = time.monotonic()

    def __call__(self, candidate: Candidate, repetition: int) -> Measurement:
        """The measurement of a candidate, from an earlier call where there is one."""
        content = self._configuration(candidate)
        identity = {"config": content, "ranks": self.ranks, "repetition": repetition, "machine": machine()}
        folder = self.results / "candidates" / fingerprint(identity)[:16]
        self.progress.set_postfix_str(describe(candidate))
        made = self._read(folder)
        if made is None:
            if time.monotonic() - self._began > self.options.total_seconds:
                made = Measurement("no time", detail=f"after total_seconds {self.options.total_seconds:g}")
            else:
                made = self._launch(folder, content, candidate)
                if made.status != "failed":
                    write_whole(folder / "result.json", json.dumps(asdict(made) | {"identity": identity}))
        if self.progress.total is not None and self.progress.n >= self.progress.total:
            self.progress.total += 1
        self.progress.update()
        return made

    def _configuration(self, candidate: Candidate) -> dict[str, Any]:
        """What is trained, but for its output folder."""
        options = self.options
        own = yaml.safe_load(self.text)
        own.pop("output")
        own["batch"] = {**own.get("batch", {}), "ramp": []}  # steps that are timed are of one size
        hook = {"warmup_steps": options.warmup_steps, "timed_steps": options.timed_steps,
                "timed_seconds": options.timed_seconds}  # fmt: skip
        measured = {
            "steps": max(self.config.steps, options.warmup_steps + options.timed_steps + 1),
            "checkpoint": {"every": NEVER, "resume": False},
            "validation": {"every": NEVER, "at_start": False},
            "telemetry": {"every": 1, "tensorboard": False, "wandb_project": None, "progress_bar": False},
            "hooks": [{"class_path": f"{BenchHook.__module__}.{BenchHook.__name__}", "init_args": hook}],
        }
        for section, values in (settings(self.config, candidate) | measured).items():
            own[section] = {**own.get(section, {}), **values} if isinstance(values, dict) else values
        return own

    def _read(self, folder: Path) -> Measurement | None:
        """What an earlier bench measured; None also where a longer limit may now help."""
        path = folder / "result.json"
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("identity")
        made = Measurement(**content | {"rates": tuple(content["rates"])})
        return None if made.status == "too slow" and self.options.candidate_seconds > made.seconds else made

    def _launch(self, folder: Path, content: Mapping[str, Any], candidate: Candidate) -> Measurement:
        """Trains a few steps in processes of their own and reads what they say of themselves."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run, log = folder / "run", folder / "log.txt"
        (folder / "config.yaml").write_text(yaml.safe_dump({**content, "output": str(run)}, sort_keys=False))
        script = str(Path(__file__).parents[1] / "train.py")
        command = [
            *on_free_port(deepspeed_launcher(self.ranks)),
            *(script, "--config", str(folder / "config.yaml")),
        ]
        began, load = time.monotonic(), os.getloadavg()[0] / len(os.sched_getaffinity(0))
        with log.open("w", encoding="utf-8") as file:
            launcher = subprocess.Popen(
                command, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                shown = 0
                while launcher.poll() is None and time.monotonic() - began < self.options.candidate_seconds:
                    if (steps := len(_rows(run, "train"))) != shown:
                        self.progress.set_postfix_str(f"{describe(candidate)}, step {steps}")
                        shown = steps
                    time.sleep(POLL_SECONDS)
                in_time = launcher.poll() is not None
            finally:
                _end(launcher)
        return replace(self._judge(folder, in_time, time.monotonic() - began), load=load)

    def _judge(self, folder: Path, in_time: bool, seconds: float) -> Measurement:
        name = f"{self.config.task.units_per_sample()[1]}_per_second"
        timed = [row for row in _rows(folder / "run", "train") if row["step"] > self.options.warmup_steps]
        peaks = [row["results"][NAME]["peak_memory"] for row in _rows(folder / "run", "eval")]
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        if len(timed) >= LEAST_TIMED and in_time and peaks:
            waits = sorted(row["data_wait"] for row in timed)
            rates = tuple(row[name] for row in timed)
            return Measurement("ok", rates, max(peaks), waits[len(waits) // 2], seconds=seconds)
        if OUT_OF_MEMORY.search(log):
            return Measurement("out of memory", detail=str(folder / "log.txt"), seconds=seconds)
        if not in_time:
            detail = f"no result within candidate_seconds {self.options.candidate_seconds:g}"
            return Measurement("too slow", detail=detail, seconds=seconds)
        return Measurement("failed", detail=f"{_reason(log)} ({folder / 'log.txt'})", seconds=seconds)


def machine() -> dict[str, Any]:
    """What a measurement depends on besides the configuration. The accelerator is not opened: that takes its memory."""
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    return {
        "host": platform.node(),
        "device": accelerator.device_name(),
        "count": len(os.sched_getaffinity(0)) if on_cpu else accelerator.device_count(),
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
    }


def describe(candidate: Candidate) -> str:
    """A candidate in a few words."""
    compiled = ", compiled" if candidate.compile else ""
    return f"ZeRO {candidate.zero_stage}, {candidate.precision}, micro-batch {candidate.micro_size}{compiled}"


def _rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """Complete rows of metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["kind"] == kind]


def _reason(log: str) -> str:
    """The line of a failed launch that says most."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("train.py: ") or re.match(r"(\[rank\d+\]: )?\w+Error\b", line)]
    return (told or lines or ["nothing was printed"])[-1 if not told else 0]


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Ends whatever a launch has left running; asked politely, ranks would save a checkpoint first."""
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
