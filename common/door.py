"""The command-line entry point of a room: a table of commands, from which `python -m ROOM COMMAND` is made.

A door lists its commands without importing any of them, reads a command's options into its dataclass, runs its
function and prints what that returns. It ends with 0; 1 and one line on stderr for what the user can mend
(`InputError`, or a file that cannot be read or written); 2 for wrong arguments; 130 after Ctrl-C. Everything else is a
bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, runtime_checkable

from common.caches import use_writable_caches
from common.errors import InputError

if TYPE_CHECKING:
    from common.command_line import Parser


@runtime_checkable
class Report(Protocol):
    """What a command may return in place of text."""

    def to_text(self) -> str:
        """The lines for the terminal."""


@dataclass(frozen=True)
class Command:
    """One command. Places are `module:name`, imported when they are needed."""

    options: type | str
    """The dataclass of its options; its module must not import torch, which takes seconds."""
    function: Callable[[Any], Any] | str
    """Takes the options; returns text, a Report, lines one after the other, or None."""
    about: str = ""
    """What the command is for; "" takes the docstring of the options."""
    positional: str = ""
    """The one field that is given without its name."""
    around: str = ""
    """A context manager in which the function runs."""
    own_words: bool = False
    """Whether the function takes the words of the command line and parses them itself: the options are then not all
    that it takes, and serve --help only."""
    refused: int = 2
    """Exit code for a value that the options refuse: 2 as for any wrong argument, or 1 with one line."""
    one_line: bool = False
    """Whether whatever is wrong with the request, an argument or an input, is one line and exits with 2."""
    goes_on: bool = False
    """Whether the same command, given again, goes on where it was interrupted; it is then said."""

    @property
    def summary(self) -> str:
        """What --help says of it."""
        return self.about or cleandoc(self.options_class().__doc__ or "")

    def options_class(self) -> type:
        """The dataclass of its options."""
        found: type = imported(self.options)
        return found

    def parser(self, prog: str) -> Parser:
        """Its parser; raises ArgumentError for wrong arguments."""
        from common.command_line import Parser, add_config_arguments

        parser = Parser(prog=prog, description=self.summary, exit_on_error=False)
        if self.positional:
            parser.add_argument(self.positional, type=str, help="see below")
        add_config_arguments(parser, self.options_class(), skip={self.positional} - {""})
        return parser


@dataclass(frozen=True)
class Group:
    """Commands under a common first word."""

    summary: str
    """What they are for."""
    commands: Mapping[str, Command | Group]
    """By their next word."""


Table: TypeAlias = Mapping[str, Command | Group]


def imported(place: Any) -> Any:
    """The object at `module:name`; anything but text is returned as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Door:
    """All commands of a room."""

    room: str
    """Its package."""
    summary: str
    """What the room is for."""
    commands: Table
    """By their first word."""
    spellings: Mapping[str, Sequence[str]] | None = None
    """Options of earlier versions: the words that each stands for now."""
    names_room: bool = True
    """Whether messages begin with the room's name."""

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Runs the command that `arguments` (None takes the program's) name; returns the exit code.

        Raises:
            SystemExit: --help, or 2 for wrong arguments.
        """
        use_writable_caches()
        words = list(sys.argv[1:] if arguments is None else arguments)
        command, path, words = self._find(words)
        name = " ".join([self.room, *path] if self.names_room else path)
        try:
            options: Any = words
            if not command.own_words or {"-h", "--help"} & set(words):
                options = self._options(command, path, name, words)
                if isinstance(options, int):
                    return options
            with imported(command.around)() if command.around else nullcontext():
                _tell(imported(command.function)(options))
            return 0
        except KeyboardInterrupt:
            if command.goes_on:
                print("the same command goes on where this one was", file=sys.stderr)
            return end_interrupted(name)
        except (InputError, OSError) as error:  # of the system's errors, those of a file that an option names
            print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
            known = error.exit_code if isinstance(error, InputError) else None
            return known or (2 if command.one_line else 1)

    def parsers(self) -> Iterator[tuple[list[str], Parser]]:
        """Words and parser of every command."""
        waiting: list[tuple[list[str], Command | Group]] = [([name], entry) for name, entry in self.commands.items()]
        for words, entry in waiting:
            if isinstance(entry, Group):
                waiting += [([*words, name], inner) for name, inner in entry.commands.items()]
            else:
                yield words, entry.parser(self._prog(words))

    def _prog(self, words: Sequence[str]) -> str:
        return " ".join(("python -m", self.room, *words))

    def _find(self, words: list[str]) -> tuple[Command, list[str], list[str]]:
        """The command, the words that name it and those after it."""
        table, summary = self.commands, self.summary
        for place, word in enumerate(words):
            entry = table.get(word)
            if isinstance(entry, Command):
                return entry, words[: place + 1], words[place + 1 :]
            if entry is None:
                self._list(words[:place], words[place:], table, summary)
            table, summary = entry.commands, entry.summary
        self._list(words, [], table, summary)

    def _list(self, before: list[str], words: list[str], table: Table, summary: str) -> NoReturn:
        """Answers --help, or says that the next word is no command."""
        parser = ArgumentParser(prog=self._prog(before), description=summary, allow_abbrev=False)
        listed = parser.add_subparsers(required=True, dest="command")
        for name, entry in table.items():
            listed.add_parser(name, help=entry.summary.replace("%", "%%"), add_help=False)
        parser.parse_args(words)
        parser.error(f"expected a command, found {words[0]!r}")

    def _options(self, command: Command, path: Sequence[str], name: str, words: list[str]) -> Any:
        """The command's options, or the exit code for those that it refuses in one line."""
        from jsonargparse import ArgumentError

        from common.command_line import build_config, explain, one_spelling

        parser = command.parser(self._prog(path))
        spellings = self.spellings or {}
        words = [
            meant for word in one_spelling(words, command.options_class()) for meant in spellings.get(word, [word])
        ]
        try:
            parsed = parser.parse_args(words)
        except ArgumentError as error:
            message, code = explain(str(error), parser), 2
        else:
            try:
                return build_config(command.options_class(), parsed.as_dict())
            except ValueError as error:
                message, code = str(error), command.refused
        if code == 2 and not command.one_line:
            parser.print_usage(sys.stderr)
            print(f"tip: all options: {parser.prog} --help\nerror: {message}", file=sys.stderr)
            sys.exit(2)
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
        return code


def _tell(said: Any) -> None:
    """Prints what a command returned; lines at once, each when it is there."""
    if isinstance(said, Iterator):
        for line in said:
            print(line, flush=True)
    elif said is not None:
        print(said.to_text() if isinstance(said, Report) else said)


def end_interrupted(command: str) -> int:
    """Says that Ctrl-C ended a command, and returns its exit code.

    What destructors raise from here on is not shown: libraries cut off while starting leave half-made objects.
    """
    sys.unraisablehook = lambda _: None
    print(f"{command}: interrupted", file=sys.stderr)
    return 130


__all__ = ["Command", "Door", "Group", "Report", "end_interrupted", "imported"]
