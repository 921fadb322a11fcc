"""What a room's commands are is known before anything heavy is imported: help and mistakes are answered at once."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonargparse import ActionConfigFile

from common.door import Door

ROOMS = ["arch", "tokenizer", "data_pipeline", "eval", "pretrain"]
OWN_CONFIG = {
    "arch": {"inspect", "inherit"},
    "eval": {"ablation", "compare", "delvm", "ladder", "scaling", "shapes"},
    "pretrain": {"quickstart", "ocr", "vision"},
}
HEAVY = "{'datasets', 'deepspeed', 'timm', 'torch', 'transformers'}"


def doors(room: str) -> Iterator[Door]:
    module = importlib.import_module(f"{room}.__main__")
    if room == "pretrain":
        yield Door(room, "", module.COMMANDS)
        yield Door(room, "", {"plan": module.FROM_BUDGET})
    else:
        yield module.DOOR


@pytest.mark.parametrize("room", ROOMS)
def test_a_mistake_is_refused_and_help_is_given_without_torch(room: str):
    """Of the room and of every command, one after the other in one process."""
    lines = [["no such command"], [], ["--help"]]
    lines += [[*words, "--help"] for door in doors(room) for words, _ in door.parsers()]
    lines += [["plan", "--hours", "1", "--help"]] if room == "pretrain" else []
    program = (
        "import sys\n"
        f"from {room}.__main__ import main\n"
        f"for words in {lines}:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as end:\n"
        f"        heavy = sorted({HEAVY} & sys.modules.keys())\n"
        "        print('\\n>', words, end.code, heavy)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = [line for line in child.stdout.splitlines() if line.startswith("> ")]
    assert said == [f"> {words} {0 if '--help' in words else 2} []" for words in lines], child.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_no_command_takes_the_beginning_of_an_option_for_it(room: str):
    for door in doors(room):
        for words, parser in door.parsers():
            assert not parser.allow_abbrev, words


@pytest.mark.parametrize("room", ROOMS)
def test_every_command_reads_a_file_of_its_options(room: str):
    """But those whose `--config` is a field: the shape, run or study that they are about."""
    own = {
        words[0]
        for door in doors(room)
        for words, parser in door.parsers()
        if not isinstance(parser._option_string_actions.get("--config"), ActionConfigFile)
    }
    assert own == OWN_CONFIG.get(room, set())


def test_a_file_of_options_is_read_and_its_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main = importlib.import_module("tokenizer.__main__").main
    file, text = tmp_path / "options.yaml", tmp_path / "none.txt"
    file.write_text(f"input: [{text}]\noutput: {tmp_path / 'made'}\nvocab_sise: 300\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(file)])
    assert ended.value.code == 2 and "did you mean 'vocab_size'?" in capsys.readouterr().err
    file.write_text(file.read_text().replace("sise", "size"))
    assert main(["train", "--config", str(file)]) == 1
    assert str(text) in capsys.readouterr().err and not (tmp_path / "made").exists()
