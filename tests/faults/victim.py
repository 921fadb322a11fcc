"""`pretrain/train.py` with wounds that only the process itself can have: planted in its loss, its gradients, its clock.

deepspeed tests/faults/victim.py --config X.yaml      WOUNDS='{"nan_batch": [31]}' in the environment

Wounds lie at data steps, so a continued run meets the same ones, and so does the uninterrupted run that it is compared
with. SIGUSR1 sets the clock back.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch import nn

from data_pipeline.loader import Batch
from pretrain.tasks.base import LossOutput
from pretrain.train import main

SPIKE = 100.0
"""What a spiking batch's loss is multiplied by."""
HOUR = 3600.0


class Wounded:
    """Goes before a task's class: the loss of the batches that the wounds name is not what it should be."""

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        wounds: dict[str, Any] = json.loads(os.environ.get("WOUNDS", "{}"))
        output: LossOutput = super().loss(model, batch)  # type: ignore[misc]
        if not model.training:
            return output
        step = int(batch["step"])
        if step in wounds.get("nan_batch", []):
            return output._replace(total=output.total * float("nan"))
        if step in wounds.get("nan_gradient", []) and int(os.environ["RANK"]) == 1:
            output.total.register_hook(lambda gradient: gradient * float("nan"))  # on one rank, behind a good loss
        if step in wounds.get("loss_spike", []):
            return output._replace(total=output.total * SPIKE)
        return output


def lose_hours() -> None:
    """Lets SIGUSR1 set this process's clock back by an hour."""
    true_time, lost = time.time, [0.0]

    def lose(*_: object) -> None:
        lost[0] += HOUR

    signal.signal(signal.SIGUSR1, lose)
    time.time = lambda: true_time() - lost[0]


if __name__ == "__main__":
    lose_hours()
    faulthandler.register(signal.SIGUSR2)  # where it hangs, for the log
    sys.exit(main())
