"""`make gpu-check`: what this project promises of a CUDA device, checked and measured on the device at hand.

    environment    device, driver, versions of what computes
    checks         `python -m pytest tests/device -m gpu`, one line each
    speed          a short real run: tokens/s, MFU, peak memory, at two ZeRO stages, compiled and not

Everything is printed and written to runs/gpu_check.txt, which is what to report. It takes less than ten minutes on one
device: each part has a limit, and what does not fit is named. Without a device it says so and ends with 1.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.pretrain.conftest import ROOT, make_corpus, rows

REPORT = ROOT / "runs" / "gpu_check.txt"
PACKAGES = ("torch", "triton", "deepspeed", "transformers", "flash-attn", "flash-attn-3", "nvidia-nccl-cu12",
            "nvidia-nccl-cu13")  # fmt: skip
CHECK_SECONDS, GRACE_SECONDS = 350, 10
SPEED_SECONDS, RUN_SECONDS = 140, 90
"""In which runs may start, and that one may take: with the checks under ten minutes."""
SHAPE = {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
    "num_attention_heads": 16, "shortcut_reduction": 32, "max_position_embeddings": 2048,
}  # fmt: skip
"""Of the run that is timed: about 190M parameters."""
RUNS = (("ZeRO 1", 1, False), ("ZeRO 1, compiled", 1, True), ("ZeRO 3", 3, False), ("ZeRO 3, compiled", 3, True))


@dataclass(frozen=True)
class Check:
    """One test, as pytest reports it."""

    name: str
    result: str
    """passed, failed, skipped."""
    seconds: float
    detail: str = ""
    """First line of why it failed, or was skipped."""


def read_checks(report: Path) -> list[Check]:
    """The tests of a JUnit XML file that pytest wrote."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        result, detail = "passed", ""
        for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            if (child := case.find(kind)) is not None:
                result, detail = word, (child.get("message") or "").splitlines()[0] if child.get("message") else ""
        found.append(Check(case.get("name", "?"), result, float(case.get("time", 0)), detail))
    return found


def run_checks(folder: Path) -> list[Check]:
    """The tests with the mark `gpu`, in a process of their own, which reports what it has when its time is over."""
    report = folder / "checks.xml"
    command = [sys.executable, "-m", "pytest", "tests/device", "-m", "gpu", "-q", f"--junitxml={report}"]
    running, late = subprocess.Popen(command, cwd=ROOT), []
    try:
        running.wait(CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        late = [Check("the rest", "failed", CHECK_SECONDS, f"not run within {CHECK_SECONDS} seconds")]
        running.send_signal(signal.SIGINT)  # pytest writes its report
        try:
            running.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
    if not report.exists():
        return [Check("all checks", "failed", 0, "pytest wrote no report"), *late]
    return read_checks(report) + late


def run_speed(
    folder: Path,
    shape: Mapping[str, int] = SHAPE,
    length: int = 2048,
    runs: Sequence[tuple[str, int, bool]] = RUNS,
) -> list[str]:
    """One line for every setting that is timed: medians of the logged steps after the first five."""
    # Here, because they import DeepSpeed, which has its own words for a machine without a device.
    from tests.device.measured_run import measured_run
    from tests.pretrain.task_cases import Materials, arguments

    materials = Materials(folder, make_corpus(folder))
    lines, end = [], time.monotonic() + SPEED_SECONDS
    for name, stage, compiled in runs:
        if time.monotonic() > end:
            lines.append(f"{name}: not measured, {SPEED_SECONDS} seconds are over")
            continue
        output = folder / f"stage{stage}{compiled}"
        words = arguments(
            "language",
            materials,
            output,
            task__model_overrides=dict(shape),
            task__sequence_length=length,
            steps=20,
            batch__size=16,
            batch__micro_size=8,
            optimizer__lr=1e-4,
            engine__zero_stage=stage,
            engine__compile=compiled,
            engine__deepspeed={},
            checkpoint__every=1000,
            validation__every=1000,
        )
        try:
            measured = measured_run(words, folder / "measured.json", RUN_SECONDS)
            lines.append(f"{name}: {speed_line(rows(output, 'train'), measured)}")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            lines.append(f"{name}: failed: {str(error).splitlines()[-1]}")
        shutil.rmtree(output, ignore_errors=True)
    return lines


def speed_line(train: Sequence[dict[str, Any]], measured: dict[str, Any]) -> str:
    """Speed, use of the device and memory of one run."""
    timed = train[5:] or train

    def median(name: str) -> float:
        return sorted(float(row[name]) for row in timed)[len(timed) // 2]

    return (
        f"{median('tokens_per_second'):,.0f} tokens/s, MFU {median('mfu'):.1%}, "
        f"peak {measured['peak_bytes'] / 2**30:.1f} GiB, last loss {float(train[-1]['loss']):.3f}"
    )


def environment_lines() -> list[str]:
    """Device, driver and versions."""
    lines = [f"python {sys.version.split()[0]}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(index)
            capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
            lines.append(f"device {index}: {known.name}, {known.total_memory / 2**30:.0f} GiB, capability {capability}")
        lines.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, driver {_driver()}")
    return lines


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown (no nvidia-smi)"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return answer[0] if answer else "unknown"


def report(environment: Sequence[str], checks: Sequence[Check], speed: Sequence[str], seconds: float) -> str:
    """What is printed and written."""
    counts = {word: sum(check.result == word for check in checks) for word in ("passed", "failed", "skipped")}
    lines = ["Environment", *(f"  {line}" for line in environment), ""]
    lines.append("Checks: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    lines += [f"  {c.result:8}{c.seconds:6.1f} s  {c.name}{'  ' + c.detail if c.detail else ''}" for c in checks]
    lines += ["", "Speed, on one device, 2 micro-batches of 8 x 2048 tokens a step", *(f"  {line}" for line in speed)]
    return "\n".join([*lines, "", f"{seconds:.0f} seconds in all", ""])


def main(
    checks: Callable[[Path], list[Check]] = run_checks,
    speed: Callable[[Path], list[str]] = run_speed,
    has_device: Callable[[], bool] = torch.cuda.is_available,
    target: Path = REPORT,
) -> int:
    """Runs everything; returns the exit status, which is 1 if there is no device or a check failed."""
    if not has_device():
        print("gpu-check needs a CUDA device, and torch finds none here", file=sys.stderr)
        return 1
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done, timed = checks(Path(folder)), speed(Path(folder))
    text = report(environment_lines(), done, timed, time.monotonic() - start)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {target}: that is what to report")
    failed = any(check.result == "failed" for check in done) or not any(check.result == "passed" for check in done)
    return int(failed or any("failed" in line for line in timed))


if __name__ == "__main__":
    sys.exit(main())
