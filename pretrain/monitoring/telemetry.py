"""What a run says about itself: metrics.jsonl, status, TensorBoard, Weights & Biases, a progress bar. Rank 0 only.

Every row of metrics.jsonl has `kind` (train, valid, eval, event; rescoring and round between two rounds), `step` and
`seconds` (wall clock of this process). On resume the rows after the resumed step are dropped, because those steps are
done again.
"""

from __future__ import annotations

import hashlib
import json
import math
import socket
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.atomic_files import write_whole
from pretrain.config import TelemetryConfig
from pretrain.errors import ConfigurationError
from pretrain.monitoring.status_file import RunStatus

WANDB_ID_FILE = "wandb_id.txt"
"""In the run's folder: what W&B knows the run by."""


class Telemetry:
    """Writes rows everywhere they are wanted; a disabled one (other ranks) does nothing."""

    def __init__(
        self, directory: Path, config: TelemetryConfig, total_steps: int, enabled: bool, status: RunStatus
    ) -> None:
        self.directory, self.config, self.total_steps, self.enabled = directory, config, total_steps, enabled
        self.status = status
        self._started = time.perf_counter()
        self._writer: Any = None
        self._wandb: Any = None
        self._bar: tqdm | None = None
        self._file: Any = None

    def open(self, step: int) -> None:
        """Opens all outputs to continue at `step`."""
        if not self.enabled:
            return
        path = self.directory / "metrics.jsonl"
        _drop_rows_after(path, step)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        if self.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)
        if self.config.wandb_project is not None:
            try:
                import wandb
            except ImportError as error:
                raise ConfigurationError(
                    "telemetry.wandb_project is set but wandb is not installed: pip install 'tinypi[wandb]'"
                ) from error
            self._wandb = wandb.init(
                project=self.config.wandb_project,
                dir=str(self.directory),
                id=_wandb_id(self.directory),
                name="/".join(self.directory.resolve().parts[-3:]),
                resume="allow",
            )
        if self.config.progress_bar:
            self._bar = tqdm(total=self.total_steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05)

    def row(self, kind: str, step: int, **values: Any) -> None:
        """Logs one row; numbers also go to TensorBoard and W&B as `kind/name`."""
        if not self.enabled:
            return
        seconds = round(time.perf_counter() - self._started, 3)
        row = _finite({"kind": kind, "step": step, **values, "seconds": seconds})
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.status.row(kind, row)
        scalars = {f"{kind}/{name}": value for name, value in _flatten(values) if isinstance(value, (int, float))}
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def event(self, step: int, event: str, detail: str) -> None:
        """Logs something out of the ordinary and says it above the progress bar."""
        self.row("event", step, event=event, detail=detail)
        self.say(f"step {step}: {event}: {detail}")

    def say(self, text: str) -> None:
        """Prints without breaking the progress bar."""
        if self.enabled:
            tqdm.write(text)

    def advance(self, **shown: str) -> None:
        """Moves the progress bar by one step; `shown` replaces what stands beside it when given."""
        if self._bar is not None:
            if shown:
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update()

    def bar(self, total: int, done: int, unit: str, description: str) -> tqdm:
        """A progress bar with an ETA of its own, for long work between steps; shown where the main one is."""
        hidden = not (self.enabled and self.config.progress_bar)
        return tqdm(total=total, initial=done, unit=unit, desc=description, disable=hidden, dynamic_ncols=True)

    def close(self) -> None:
        """Flushes and closes every output; may be called again and before a new open()."""
        for output in (self._bar, self._writer, self._file):
            if output is not None:
                output.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._bar = self._writer = self._wandb = self._file = None


def _wandb_id(directory: Path) -> str:
    """The run's name to W&B, drawn at the first start and kept in the run's folder.

    Two folders `a/train` and `b/train` are two runs, also those of two machines, and of one folder emptied and used
    again; a run that was moved goes on as itself.
    """
    file = directory / WANDB_ID_FILE
    if not file.is_file():
        first = f"{socket.gethostname()} {directory.resolve()} {time.time_ns()}"
        write_whole(file, hashlib.sha256(first.encode(errors="surrogateescape")).hexdigest()[:16] + "\n")
    return file.read_text(encoding="utf-8").strip()


def _drop_rows_after(path: Path, step: int) -> None:
    """Keeps rows up to `step`, all events, and no half-written last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a kill in the middle of a line
        if row["step"] <= step or row["kind"] == "event":
            kept.append(line)
    write_whole(path, "".join(kept))


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as (path, leaf) pairs."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def _finite(value: Any) -> Any:
    """JSON has no NaN: non-finite numbers become strings that float() reads."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
