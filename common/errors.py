"""What is wrong with what a user gave: the errors that every room can raise, and that a command prints as one line.

Every message names the file (and the line, row or field), what was expected, what was found and what to do.
"""


class InputError(Exception):
    """Base of everything that the user can mend. A command prints it as one line and exits with 1; a bug keeps its
    traceback."""

    exit_code: int | None = None
    """Of errors that end with this code whatever the command: a step that failed is no wrong request."""


class DataError(InputError, ValueError):
    """Bad input or a bad request, in the data or in what was asked of them."""


class ShardError(DataError):
    """A shard directory that cannot be trusted: missing, truncated, altered, of another format or another tokenizer."""
