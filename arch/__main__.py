"""`python -m arch inspect | export | inherit | bypass`: what a shape costs, a model in transformers format, surgery."""

import sys

from common.door import Command, Door

DOOR = Door(
    "arch",
    "What a model costs, how it leaves, how it shrinks.",
    {
        "inspect": Command(
            "arch.commands:InspectOptions",
            "arch.commands:inspect",
            "Print a shape's parameters and FLOPs by part, without allocating its weights.",
        ),
        "export": Command(
            "arch.commands:ExportOptions",
            "arch.commands:export",
            "Write a model in transformers format; refuses if it does not reload to the same logits.",
        ),
        "inherit": Command(
            "arch.surgery.options:InheritConfig",
            "arch.commands:inherit",
            "Cut a small model out of a larger one: layers, heads, neurons, channels, vocabulary.",
        ),
        "bypass": Command(
            "arch.surgery.options:BypassConfig",
            "arch.surgery.bypass_command:bypass",
            "Measure the loss without runs of consecutive layers, at every position.",
        ),
    },
)
main = DOOR.main

if __name__ == "__main__":
    sys.exit(main())
