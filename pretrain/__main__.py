"""The room's front door: `python -m pretrain COMMAND`. Training itself is `deepspeed pretrain/train.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from common.door import Command, Door

BUDGET = "--hours"
"""The option with which `plan` starts from what is at hand, and not from a configuration."""


@contextmanager
def told() -> Iterator[None]:
    """DeepSpeed knows its accelerator before anything imports it, and libraries that warn are silent."""
    from pretrain.accelerator_presence import tell_deepspeed
    from pretrain.library_warnings import silence_library_warnings

    tell_deepspeed()
    silence_library_warnings()
    yield


def _run_command(options: str, function: str, about: str, own_words: bool = True) -> Command:
    """A command about a run that need not exist yet. With `own_words` it takes the run's configuration as well, as
    `train.py` does, and mistakes are explained as there."""
    return Command(options, function, about, around=f"{__name__}:told", own_words=own_words, one_line=True)


def _walkthrough(kind: str, options: str, about: str) -> Command:
    module = f"pretrain.quickstarts.{kind}"
    around = "pretrain.interruption:terminable"
    return Command(f"{module}:{options}", f"{module}:run", about, around=around, goes_on=True)


COMMANDS = {
    "quickstart": _walkthrough(
        "text", "QuickstartConfig", "From raw text to an evaluated, exported language model on two CPU ranks."
    ),
    "ocr": _walkthrough("words", "OcrQuickstartConfig", "From a list of words to a text recogniser on two CPU ranks."),
    "vision": _walkthrough(
        "images",
        "VisionQuickstartConfig",
        "From photographs to a model that learns visual tasks from examples, on two CPU ranks.",
    ),
    "plan": _run_command(
        "pretrain.planning.options:PlanConfig",
        "pretrain.planning.plan_report:from_words",
        "Memory by part for every setting, time and disk of a run, before anything is allocated; picks a setting. "
        "Takes the fields of the run as well, see pretrain/train.py --help. "
        "With --hours it makes the configuration itself: see `plan --hours 1 --help`.",
    ),
    "bench": _run_command(
        "pretrain.planning.options:BenchConfig",
        "pretrain.planning.bench_report:from_words",
        "Measures ZeRO stages, micro-batches and torch.compile on this machine, with the trainer itself; picks one. "
        "Takes the fields of the run as well, see pretrain/train.py --help.",
    ),
    "status": Command(
        "pretrain.monitoring.status_command:StatusConfig",
        "pretrain.monitoring.status_command:watch",
        "How a run is doing: step, loss, speed, silent ranks, what happened last.",
        positional="run",
        one_line=True,
    ),
}
FROM_BUDGET = _run_command(
    "pretrain.planning.options:BudgetConfig",
    "pretrain.planning.budget_report:run",
    "From hardware, hours and text at hand to a complete configuration, with the reason of every choice.",
    own_words=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    budget = words[:1] == ["plan"] and any(word.partition("=")[0] == BUDGET for word in words)
    commands = COMMANDS | {"plan": FROM_BUDGET} if budget else COMMANDS
    return Door("pretrain", __doc__ or "", commands, names_room=False).main(words)


if __name__ == "__main__":
    sys.exit(main())
