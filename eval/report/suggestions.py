"""What to try next, from what a run shows; every command can be pasted."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from common.find_model import newest_checkpoints
from eval.report.run_record import RunRecord, finite

MUCH_WAITING = 0.1
"""Share of the time spent waiting for data above which more workers are suggested."""


@dataclass(frozen=True)
class Suggestion:
    """Something to try next: why, and the command that does it."""

    reason: str
    command: str


def suggestions(record: RunRecord) -> list[Suggestion]:
    """First what the curves ask for, then what the run's task offers."""
    offers = {
        "LanguageModelTask": _language,
        "WordRecognitionTask": _recognition,
        "VisualSentenceTask": _visual_sentences,
    }
    offered = offers[record.task](record) if record.task in offers else []
    return [*_from_the_curves(record), *offered]


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
            found.append(Suggestion(reason, _more_data(record)))
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


def _more_data(record: RunRecord) -> str:
    """The command that makes more of what this run was trained on."""
    if record.task == "WordRecognitionTask":
        return "python -m data_pipeline synth-words --words MORE.txt --size 200000 --output MORE"
    tokenizer = f"--tokenizer {_checkpoint(record)}/tokenizer"
    if record.task == "VisualSentenceTask":
        return f"python -m data_pipeline prepare --input MORE_PHOTOGRAPHS/ {tokenizer} --pairs.task edges --output MORE"
    return f"python -m data_pipeline prepare --input MORE.jsonl {tokenizer} --output MORE"


def _language(record: RunRecord) -> list[Suggestion]:
    run = record.directory
    found = []
    if not record.evaluations:
        found.append(
            Suggestion("No benchmark has been run.", f"python -m eval lm --model {run} --tasks piqa,arc_easy,blimp")
        )
    return [
        *found,
        Suggestion(
            "See whether features collapse with depth.",
            f"python -m eval collapse --model {run} --text HELD_OUT.jsonl --output {run}/eval",
        ),
        Suggestion(
            "Use the model anywhere: transformers format, checked.",
            f"python -m arch export --model {_checkpoint(record)} --out {run}/export",
        ),
        Suggestion(
            "The whole PanGu-pi benchmark set from local files.",
            f"python -m eval lm --model {run} --data BENCHMARKS --tasks pangu_pi",
        ),
    ]


def _recognition(record: RunRecord) -> list[Suggestion]:
    run = record.directory
    held_out = next(iter((record.config["task"].get("init_args", {}).get("valid") or {}).values()), "MY_WORDS/")
    return [
        Suggestion(
            "Read word images of your own: a folder with the images and labels.txt (a line `file<TAB>word` for each).",
            f"python -m eval ocr --model ours={run} --data MY_WORDS/ --output {run}/eval",
        ),
        Suggestion(
            "Compare with an ONNX recogniser on the same images (pip install rapidocr-onnxruntime).",
            f"python -m eval ocr --model ours={run} rapidocr --data {held_out} --output {run}/eval",
        ),
        Suggestion(
            "Photographed words beside the drawn ones, augmented; mixture weights are --task.weights.",
            f"""{_train(record)} --task.train '["MY_TRAINING_WORDS"]' --task.copies 4 --output {run}-photographed""",
        ),
    ]


def _visual_sentences(record: RunRecord) -> list[Suggestion]:
    run, tokenizer = record.directory, f"{_checkpoint(record)}/tokenizer"
    return [
        Suggestion(
            "Train on photographs of your own.",
            "python -m pretrain vision --images MY_PHOTOGRAPHS/ --output runs/my-vision",
        ),
        Suggestion(
            "See what the visual tokenizer alone loses: no answer can be sharper than its reconstructions.",
            f"python -m tokenizer visual inspect --tokenizer {tokenizer} --images MY_PHOTOGRAPHS/ --output {run}/eval",
        ),
        Suggestion(
            "Show the tasks with other pairs: sets of your own, one to three examples before the question.",
            f"python -m eval vision --model {run} --sets MY_SETS.yaml --output {run}/eval",
        ),
    ]
