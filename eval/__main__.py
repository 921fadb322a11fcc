"""``python -m eval COMMAND``; ``--help`` lists the commands and their arguments."""

import os
import sys
from collections.abc import Sequence

from common.door import Command, Door
from eval import commands


def _command(options: type, module: str) -> Command:
    """A command whose `run(options)` is in a module; its options refuse values in one line."""
    return Command(options, f"{module}:run", around="pretrain.interruption:terminable", refused=1)


DOOR = Door(
    "eval",
    "Measures models: benchmarks, collapse, reports, ablations.",
    {
        "lm": _command(commands.LmOptions, "eval.language.lm"),
        "held-out": _command(commands.HeldOutOptions, "eval.language.held_out"),
        "local-tasks": _command(commands.LocalTasksOptions, "eval.language.local_tasks"),
        "collapse": _command(commands.CollapseOptions, "eval.probes.collapse"),
        "forgetting": _command(commands.ForgettingOptions, "eval.probes.forgetting"),
        "generate": _command(commands.GenerateOptions, "eval.language.generate"),
        "ocr": _command(commands.OcrOptions, "eval.words.ocr"),
        "vision": _command(commands.VisionOptions, "eval.prompting.run"),
        "report": _command(commands.ReportOptions, "eval.report.report"),
        "ablation": _command(commands.CompareOptions, "eval.studies.compare"),
        "compare": _command(commands.CompareOptions, "eval.studies.compare"),
        "delvm": _command(commands.DelvmOptions, "eval.studies.delvm"),
        "ladder": _command(commands.LadderOptions, "eval.studies.ladder"),
        "scaling": _command(commands.ScalingOptions, "eval.studies.scaling"),
        "shapes": _command(commands.ShapesOptions, "eval.studies.shapes"),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return DOOR.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
