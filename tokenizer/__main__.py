"""`python -m tokenizer train | compress | inspect`: make a tokenizer, make it smaller, see what it is made of.

`python -m tokenizer visual train | import-vqgan | encode | decode | inspect` does the like for images.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from jsonargparse import ArgumentParser

from common.caches import use_writable_caches
from common.command_line import Parser, add_config_arguments, end_interrupted, make_config
from tokenizer.compression.compress import compress
from tokenizer.compression.compress_config import CompressConfig
from tokenizer.inspection import InspectConfig, inspect_tokenizer
from tokenizer.train import TrainConfig, train_tokenizer
from tokenizer.visual import commands as visual

Command: TypeAlias = tuple[type, Callable[[Any], Any], str]
COMMANDS: Mapping[str, Command] = {
    "train": (TrainConfig, train_tokenizer, "Train a SentencePiece tokenizer on a sample of a corpus."),
    "compress": (CompressConfig, compress, "Cut a smaller tokenizer out of a larger one, by what a corpus uses."),
    "inspect": (InspectConfig, inspect_tokenizer, "Vocabulary, fit to each language, coverage, and cost in a model."),
}

GROUPS: dict[str, tuple[Mapping[str, Command], str]] = {
    "visual": (visual.COMMANDS, "Train, use and inspect tokenizers of images."),
}
"""Commands that have commands of their own."""

OTHER_SPELLINGS = {
    "--vocab-size": ["--vocab_size"],
    "--out": ["--output"],
    "--no_closure": ["--closure", "false"],
    "--no-closure": ["--closure", "false"],
}


def build_parser() -> ArgumentParser:
    """The parser of all commands; every option is a field of the command's config."""
    parser = Parser(prog="python -m tokenizer", description="Train, compress and inspect tokenizers.")
    subcommands = _add_commands(parser, COMMANDS)
    for name, (commands, summary) in GROUPS.items():
        group = Parser(description=summary)
        subcommands.add_subcommand(name, group, help=summary)
        _add_commands(group, commands)
    return parser


def _add_commands(parser: ArgumentParser, commands: Mapping[str, Command]) -> Any:
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, (config_class, _, summary) in commands.items():
        subparser = Parser(description=summary)
        add_config_arguments(subparser, config_class)
        subcommands.add_subcommand(name, subparser, help=summary)
    return subcommands


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command: 0, or 1 with one line on stderr for input that cannot be used (the parser exits with 2), or 130
    after Ctrl-C."""
    use_writable_caches()
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else arguments
    parsed = parser.parse_args([word for argument in given for word in OTHER_SPELLINGS.get(argument, [argument])])
    words, commands = [parsed.command], COMMANDS
    options = parsed[parsed.command]
    if parsed.command in GROUPS:
        commands = GROUPS[parsed.command][0]
        words.append(options.command)
        options = options[options.command]
    config_class, command, _ = commands[words[-1]]
    config = make_config(parser, config_class, options.as_dict())
    name = f"tokenizer {' '.join(words)}"
    try:
        print(command(config).to_text())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return end_interrupted(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
