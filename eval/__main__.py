"""``python -m eval COMMAND``; ``--help`` lists the commands and their arguments."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from common.caches import use_writable_caches
from common.command_line import Parser, add_config_arguments, end_interrupted
from eval import commands
from pretrain.interruption import terminable

# command -> (its options, the module whose `run(options)` does it); modules are imported only when needed.
COMMANDS: dict[str, tuple[type, str]] = {
    "lm": (commands.LmOptions, "eval.language.lm"),
    "held-out": (commands.HeldOutOptions, "eval.language.held_out"),
    "local-tasks": (commands.LocalTasksOptions, "eval.language.local_tasks"),
    "collapse": (commands.CollapseOptions, "eval.probes.collapse"),
    "forgetting": (commands.ForgettingOptions, "eval.probes.forgetting"),
    "generate": (commands.GenerateOptions, "eval.language.generate"),
    "ocr": (commands.OcrOptions, "eval.words.ocr"),
    "vision": (commands.VisionOptions, "eval.prompting.run"),
    "report": (commands.ReportOptions, "eval.report.report"),
    "ablation": (commands.CompareOptions, "eval.studies.compare"),
    "compare": (commands.CompareOptions, "eval.studies.compare"),
    "delvm": (commands.DelvmOptions, "eval.studies.delvm"),
    "ladder": (commands.LadderOptions, "eval.studies.ladder"),
    "scaling": (commands.ScalingOptions, "eval.studies.scaling"),
    "shapes": (commands.ShapesOptions, "eval.studies.shapes"),
}


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="python -m eval", description="Measures models: benchmarks, collapse, reports, ablations.")
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, (options, _) in COMMANDS.items():
        subparser = Parser(description=options.__doc__)
        add_config_arguments(subparser, options, config_file=False)
        subcommands.add_subcommand(name, subparser, help=options.__doc__)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 with one line on stderr for unusable input, 130 if interrupted (2 comes from the parser)."""
    use_writable_caches()
    parsed = build_parser().parse_args(arguments)
    options_class, module = COMMANDS[parsed.command]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        options = options_class(**parsed[parsed.command].as_dict())
        with terminable():
            importlib.import_module(module).run(options)
    except KeyboardInterrupt:
        return end_interrupted(f"eval {parsed.command}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"eval {parsed.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
