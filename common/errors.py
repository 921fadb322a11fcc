"""What is wrong with what a user gave: the errors that every room can raise, and that a command prints as one line.

Every message names the file (and the line, row or field), what was expected, what was found and what to do.
"""


class DataError(ValueError):
    """Base class: bad input or a bad request, never a bug. The command line prints it as one line and exits with 1."""


class ShardError(DataError):
    """A shard directory that cannot be trusted: missing, truncated, altered, of another format or another tokenizer."""
