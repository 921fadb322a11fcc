"""What a room's commands are is known before anything heavy is imported: help and mistakes are answered at once."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("room", ["arch", "tokenizer", "data_pipeline", "eval", "pretrain"])
def test_a_mistake_is_refused_without_torch(room: str):
    program = (
        "import sys\n"
        f"from {room}.__main__ import main\n"
        "sys.argv = ['room', 'no such command']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    print(end.code, sorted({'datasets', 'timm', 'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.stdout == "2 []\n", child.stderr


@pytest.mark.parametrize("room", ["arch", "tokenizer", "data_pipeline", "eval", "pretrain"])
def test_no_command_takes_the_beginning_of_an_option_for_it(room: str):
    waiting = [importlib.import_module(f"{room}.__main__").build_parser()]
    while waiting:
        parser = waiting.pop()
        assert not parser.allow_abbrev, parser.prog
        inner = [action.choices.values() for action in parser._actions if isinstance(action.choices, dict)]
        waiting += [each for choices in inner for each in choices]
