"""What a room's commands are is known before anything heavy is imported: help and mistakes are answered at once."""

from __future__ import annotations

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
