"""The room's front door: `python -m pretrain quickstart`. Training itself is `deepspeed pretrain/train.py`."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser

from pretrain.errors import ConfigurationError
from pretrain.pipeline import StepFailed
from pretrain.quickstart import QuickstartConfig, next_steps, quickstart
from tokenizer.command_line import add_config_arguments, make_config


def main() -> int:
    """Exit code: 0 done, 1 a step failed, 2 wrong arguments."""
    parser = ArgumentParser(prog="python -m pretrain", description=__doc__)
    commands = parser.add_subcommands(required=True, dest="command")
    arguments = ArgumentParser(description="From raw text to an evaluated, exported model on two CPU ranks.")
    add_config_arguments(arguments, QuickstartConfig, config_file=False)
    commands.add_subcommand("quickstart", arguments)
    config = make_config(parser, QuickstartConfig, parser.parse_args().quickstart.as_dict())
    try:
        report = quickstart(config)
    except (StepFailed, ConfigurationError, OSError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    print(next_steps(config, report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
