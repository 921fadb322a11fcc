"""Errors that are the user's to mend: printed as one line, without a traceback."""

from common.errors import InputError


class ConfigurationError(InputError, ValueError):
    """The configuration is wrong; the message names the field and what to do."""


class CheckpointError(InputError, RuntimeError):
    """A checkpoint cannot be written or used; the message says which file or field and what to do."""


class TrainingDiverged(InputError, RuntimeError):
    """The gradients stay non-finite and rolling back did not help."""


class LedgerError(InputError, RuntimeError):
    """A round's ledger of losses cannot be read or does not hold what is asked of it; the message says what to do."""


class PeerLost(InputError, RuntimeError):
    """Another rank is gone, so that this one cannot go on; the message names its host and says where to look."""
