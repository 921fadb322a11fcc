"""The room's front door: `python -m pretrain COMMAND`. Training itself is `deepspeed pretrain/train.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from data_pipeline import DataError
from pretrain import bench_report, plan_report, quickstart, quickstart_ocr, quickstart_vision, status_report
from pretrain.bench import BenchConfig
from pretrain.command_line import build_parser, parse_with
from pretrain.config import TrainConfig
from pretrain.errors import ConfigurationError
from pretrain.pipeline import StepFailed
from pretrain.plan import PlanConfig
from pretrain.walkthrough import Walkthrough
from tokenizer.command_line import add_config_arguments, end_interrupted, make_config

STATUS = "status"


class Command(NamedTuple):
    """One walk-through."""

    options: type[Walkthrough]
    run: Callable[[Any], Path]
    """Runs its steps and returns the report's path."""
    next_steps: Callable[[Any, Path], str]
    """What is said at its end."""
    summary: str

    def parser(self) -> ArgumentParser:
        """Of its options."""
        arguments = ArgumentParser(description=self.summary)
        add_config_arguments(arguments, self.options, config_file=False)
        return arguments

    def __call__(self, parser: ArgumentParser, options: dict[str, Any]) -> str:
        """Walks through, and returns what is said at the end."""
        config = make_config(parser, self.options, options)
        return self.next_steps(config, self.run(config))


class RunCommand(NamedTuple):
    """A command about a run that need not exist yet: it takes the run's configuration and more.

    Mistakes are explained as `train.py` explains them.
    """

    options: type
    """What it takes besides the fields of the run."""
    run: Callable[[TrainConfig, str, Any], str]
    """Takes the configuration, its complete YAML and the options; returns what is printed."""
    summary: str

    def __call__(self, name: str, arguments: list[str]) -> int:
        """Exit code: 0 done, 1 a step failed, 2 wrong arguments."""
        parser = build_parser(f"pretrain {name}", self.summary)
        parser.add_class_arguments(self.options)
        try:
            print(self.run(*parse_with(parser, arguments, self.options)))
        except KeyboardInterrupt:
            return end_interrupted(name)
        except (ConfigurationError, DataError, StepFailed, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1 if isinstance(error, StepFailed) else 2
        return 0


RUN_COMMANDS = {
    "plan": RunCommand(PlanConfig, plan_report.run, plan_report.SUMMARY),
    "bench": RunCommand(BenchConfig, bench_report.run, bench_report.SUMMARY),
}
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
    if (about := RUN_COMMANDS.get(next(iter(sys.argv[1:]), ""))) is not None:
        return about(sys.argv[1], sys.argv[2:])
    parser = ArgumentParser(prog="python -m pretrain", description=__doc__)
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, command in COMMANDS.items():
        subcommands.add_subcommand(name, command.parser(), help=command.summary)
    for name, about in RUN_COMMANDS.items():  # their arguments were read above
        subcommands.add_subcommand(name, ArgumentParser(description=about.summary), help=about.summary)
    subcommands.add_subcommand(STATUS, _status_parser(), help=status_report.SUMMARY)
    parsed = parser.parse_args()
    if parsed.command == STATUS:
        return _status(parser, parsed[STATUS].as_dict())
    try:
        print(COMMANDS[parsed.command](parser, parsed[parsed.command].as_dict()))
    except (StepFailed, ConfigurationError, OSError) as error:
        print(f"{parsed.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _status_parser() -> ArgumentParser:
    arguments = ArgumentParser(description=status_report.SUMMARY)
    arguments.add_argument("run", type=str, help="run directory")
    add_config_arguments(arguments, status_report.StatusConfig, config_file=False, skip={"run"})
    return arguments


def _status(parser: ArgumentParser, options: dict[str, Any]) -> int:
    config = make_config(parser, status_report.StatusConfig, options)
    clear = "\033[H\033[J" if config.watch and sys.stdout.isatty() and not config.json else ""
    try:
        for text in status_report.show(config):
            print(f"{clear}{text}", flush=True)
    except KeyboardInterrupt:
        return end_interrupted(STATUS)
    except ConfigurationError as error:
        print(f"{STATUS}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
