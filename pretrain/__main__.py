"""The room's front door: `python -m pretrain COMMAND`. Training itself is `deepspeed pretrain/train.py`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from common.caches import use_writable_caches
from common.command_line import Parser, add_config_arguments, build_config, end_interrupted, make_config
from common.errors import DataError
from pretrain.accelerator_presence import tell_deepspeed
from pretrain.errors import ConfigurationError
from pretrain.interruption import terminable
from pretrain.library_warnings import silence_library_warnings
from pretrain.monitoring import status_command as status_report
from pretrain.quickstarts import images as quickstart_vision
from pretrain.quickstarts import text as quickstart
from pretrain.quickstarts import words as quickstart_ocr
from pretrain.quickstarts.commands_once import StepFailed
from pretrain.quickstarts.walkthrough import Walkthrough

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
        arguments = Parser(description=self.summary)
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

    module: str
    """Where it is: imported when it is called, because torch takes seconds. Its `run` takes the configuration, its
    complete YAML and the options, and returns what is printed."""
    options: str
    """The dataclass of what it takes besides the fields of the run, in that module."""
    summary: str

    def __call__(self, name: str, arguments: list[str]) -> int:
        """Exit code: 0 done, 1 a step failed, 2 wrong arguments."""
        tell_deepspeed()
        silence_library_warnings()
        from pretrain.command_line import build_parser, parse_with

        module = importlib.import_module(self.module)
        options = getattr(module, self.options)
        parser = build_parser(f"pretrain {name}", self.summary)
        parser.add_class_arguments(options)
        try:
            print(module.run(*parse_with(parser, arguments, options)))
        except KeyboardInterrupt:
            return end_interrupted(name)
        except (ConfigurationError, DataError, StepFailed, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1 if isinstance(error, StepFailed) else 2
        return 0


RUN_COMMANDS = {
    "plan": RunCommand(
        "pretrain.planning.plan_report",
        "PlanConfig",
        "Memory by part for every setting, time and disk of a run, before anything is allocated; picks a setting. "
        "With --hours it makes the configuration itself: see `plan --hours 1 --help`.",
    ),
    "bench": RunCommand(
        "pretrain.planning.bench_report",
        "BenchConfig",
        "Measures ZeRO stages, micro-batches and torch.compile on this machine, with the trainer itself; picks one.",
    ),
}
BUDGET = "--hours"
"""The option with which `plan` starts from what is at hand, and not from a configuration."""
BUDGET_SUMMARY = "From hardware, hours and text at hand to a complete configuration, with the reason of every choice."
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


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="python -m pretrain", description=__doc__)
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, command in COMMANDS.items():
        subcommands.add_subcommand(name, command.parser(), help=command.summary)
    for name, about in RUN_COMMANDS.items():  # their arguments were read by `main`
        subcommands.add_subcommand(name, Parser(description=about.summary), help=about.summary)
    subcommands.add_subcommand(STATUS, _status_parser(), help=status_report.SUMMARY)
    return parser


def main() -> int:
    """Exit code: 0 done, 1 a step failed, 2 wrong arguments, 130 interrupted."""
    use_writable_caches()
    if sys.argv[1:2] == ["plan"] and any(word.partition("=")[0] == BUDGET for word in sys.argv[2:]):
        return _budget(sys.argv[2:])
    if (about := RUN_COMMANDS.get(next(iter(sys.argv[1:]), ""))) is not None:
        return about(sys.argv[1], sys.argv[2:])
    parser = build_parser()
    parsed = parser.parse_args()
    if parsed.command == STATUS:
        return _status(parser, parsed[STATUS].as_dict())
    try:
        with terminable():
            print(COMMANDS[parsed.command](parser, parsed[parsed.command].as_dict()))
    except KeyboardInterrupt:
        print("the same command goes on where this one was", file=sys.stderr)
        return end_interrupted(parsed.command)
    except (StepFailed, ConfigurationError, OSError) as error:
        print(f"{parsed.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _budget(arguments: list[str]) -> int:
    """`plan --hours`: from hardware, time and text to a configuration."""
    tell_deepspeed()
    silence_library_warnings()
    from pretrain.command_line import explain
    from pretrain.planning.budget import BudgetConfig
    from pretrain.planning.budget_report import run

    parser = Parser(prog="pretrain plan", description=BUDGET_SUMMARY, exit_on_error=False)
    add_config_arguments(parser, BudgetConfig)
    try:
        options = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        print(f"plan: {explain(str(error), parser)}", file=sys.stderr)
        return 2
    try:
        print(run(build_config(BudgetConfig, options)))
    except KeyboardInterrupt:
        return end_interrupted("plan")
    except (ConfigurationError, DataError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    return 0


def _status_parser() -> ArgumentParser:
    arguments = Parser(description=status_report.SUMMARY)
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
