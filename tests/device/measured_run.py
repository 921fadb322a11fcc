"""One training run in a process of its own, as `pretrain/train.py` makes it, and what it took of the device.

python -m tests.device.measured_run REPORT.json --config ...        the words after the first are the trainer's
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pretrain.command_line import parse
from pretrain.tasks import LanguageModelTask
from pretrain.tasks.base import LossOutput
from pretrain.trainer import train
from tests.pretrain.conftest import ROOT, environment


class PoisonedTask(LanguageModelTask):
    """Language modelling whose loss is not a number in some steps.

    Args:
        poison: batches, by the step that they belong to.
        shared, decoder: what LanguageModelTask takes.
    """

    def __init__(self, *shared: Any, poison: list[int] | None = None, **decoder: Any) -> None:
        super().__init__(*shared, **decoder)
        self.poison = poison or []

    def loss(self, model: Any, batch: Any) -> LossOutput:
        output = super().loss(model, batch)
        bad = "step" in batch and int(batch["step"]) in self.poison
        return output._replace(total=output.total * float("nan")) if bad else output


def measured_run(words: list[str], report: Path, seconds: float = 300) -> dict[str, Any]:
    """Trains with these words of a command line; returns what `main` wrote to `report`.

    A process of its own, because libraries read their switches when they start, and memory has a peak of its own there.

    Raises:
        RuntimeError: the run failed; holds the end of its output.
    """
    command = [sys.executable, "-m", "tests.device.measured_run", str(report), *words]
    kept = environment()
    del kept["TORCHDYNAMO_DISABLE"]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(report.read_text())


def main(arguments: list[str]) -> None:
    report, *words = arguments
    outcome = train(parse(words)[0])
    on_cuda = torch.cuda.is_available()
    measured = {
        "outcome": outcome.value,
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "peak_bytes": torch.cuda.max_memory_allocated() if on_cuda else 0,
    }
    Path(report).write_text(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
