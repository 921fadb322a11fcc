"""The room's front door: `python -m pretrain quickstart | ocr | vision`. Training is `deepspeed pretrain/train.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from pretrain import quickstart, quickstart_ocr, quickstart_vision
from pretrain.errors import ConfigurationError
from pretrain.pipeline import StepFailed
from pretrain.walkthrough import Walkthrough
from tokenizer.command_line import add_config_arguments, make_config


class Command(NamedTuple):
    """One walk-through."""

    options: type[Walkthrough]
    run: Callable[[Any], Path]
    """Runs its steps and returns the report's path."""
    next_steps: Callable[[Any, Path], str]
    """What is said at its end."""
    summary: str


COMMANDS = {
    "quickstart": Command(
        quickstart.QuickstartConfig,
        quickstart.quickstart,
        quickstart.next_steps,
        "From raw text to an evaluated, exported language model on two CPU ranks.",
    ),
    "ocr": Command(
        quickstart_ocr.OcrQuickstartConfig,
        quickstart_ocr.quickstart_ocr,
        quickstart_ocr.next_steps,
        "From a list of words to a text recogniser on two CPU ranks.",
    ),
    "vision": Command(
        quickstart_vision.VisionQuickstartConfig,
        quickstart_vision.quickstart_vision,
        quickstart_vision.next_steps,
        "From photographs to a model that learns visual tasks from examples, on two CPU ranks.",
    ),
}


def main() -> int:
    """Exit code: 0 done, 1 a step failed, 2 wrong arguments."""
    parser = ArgumentParser(prog="python -m pretrain", description=__doc__)
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, command in COMMANDS.items():
        arguments = ArgumentParser(description=command.summary)
        add_config_arguments(arguments, command.options, config_file=False)
        subcommands.add_subcommand(name, arguments, help=command.summary)
    parsed = parser.parse_args()
    command = COMMANDS[parsed.command]
    config = make_config(parser, command.options, parsed[parsed.command].as_dict())
    try:
        report = command.run(config)
    except (StepFailed, ConfigurationError, OSError) as error:
        print(f"{parsed.command}: {error}", file=sys.stderr)
        return 1
    print(command.next_steps(config, report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
