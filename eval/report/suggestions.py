"""What to try next, from what a run shows; every command can be pasted."""

from __future__ import annotations

from statistics import median

from common.find_model import newest_checkpoints
from eval.report.run_record import RunRecord, finite
from pretrain.tasks.facts import Suggestion

MUCH_WAITING = 0.1
"""Share of the time spent waiting for data above which more workers are suggested."""


def suggestions(record: RunRecord) -> list[Suggestion]:
    """First what the curves ask for, then what the run's task declares."""
    offered = [
        Suggestion(_filled(each.reason, record), _filled(each.command, record))
        for each in record.facts.suggestions or ()
        if not (each.unless_evaluated and record.evaluations)
    ]
    return [*_from_the_curves(record), *offered]


def _filled(text: str, record: RunRecord) -> str:
    """`text` with the names that a `Suggestion` may use filled in; other braces stay."""
    task = record.config.get("task")
    valid = task.get("init_args", {}).get("valid") if isinstance(task, dict) else None
    held_out = next(iter(valid.values()), None) if isinstance(valid, dict) else None
    names = {"run": record.directory, "checkpoint": _checkpoint(record), "train": _train(record)}
    for name, value in {**names, "held_out": held_out or "HELD_OUT"}.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _train(record: RunRecord) -> str:
    return f"deepspeed pretrain/train.py --config {record.directory}/config.yaml"


def _from_the_curves(record: RunRecord) -> list[Suggestion]:
    """Skipped steps, a validation loss that still falls or rises again, a disturbed measurement: for every task."""
    run, train = record.directory, _train(record)
    found: list[Suggestion] = []
    skips = [row for row in record.rows.get("event", []) if row.get("event") in ("skip", "rollback")]
    rate, steps = record.config.get("optimizer", {}).get("lr"), record.config.get("steps")
    if skips:
        lower = f" --optimizer.lr {rate / 3:.2g}" if isinstance(rate, float) else " --optimizer.lr 3e-4"
        found.append(
            Suggestion(f"{len(skips)} steps were skipped or rolled back.", f"{train}{lower} --output {run}-lower-lr")
        )
    valid = finite(record.series("valid", "loss")[1])
    if len(valid) >= 2 and isinstance(steps, int):
        if valid[-1] <= min(valid):
            reason = f"Validation loss was still falling ({valid[-2]:.3f} to {valid[-1]:.3f}) at the end."
            found.append(Suggestion(reason, f"{train} --steps {2 * steps} --output {run}-longer"))
        else:
            reason = f"Validation loss ends above its best ({min(valid):.3f}): more data helps more than more steps."
            found.append(Suggestion(reason, _filled(record.facts.more_data or "more of the training data", record)))
    mfu = finite(record.series("train", "mfu")[1])
    if mfu and median(mfu) > 1:
        reason = (
            f"MFU {median(mfu):.0%}: the machine was busy while its peak was measured. Run it alone for a true MFU."
        )
        found.append(Suggestion(reason, f"{train} --output {run}-alone"))
    waits = finite(record.series("train", "data_wait")[1])
    if waits and median(waits) > MUCH_WAITING:
        workers = record.config.get("loader", {}).get("workers", 0) + 1
        reason = f"{median(waits):.0%} of the time went into waiting for data; let more workers read ahead."
        found.append(Suggestion(reason, f"{train} --loader.workers {workers}"))
    return found


def _checkpoint(record: RunRecord) -> str:
    return str(next(iter(newest_checkpoints(record.directory)), record.directory))
