"""Errors that are the user's to mend: printed as one line, without a traceback."""


class ConfigurationError(ValueError):
    """The configuration is wrong; the message names the field and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or used; the message says which file or field and what to do."""


class TrainingDiverged(RuntimeError):
    """The gradients stay non-finite and rolling back did not help."""


class LedgerError(RuntimeError):
    """A round's ledger of losses cannot be read or does not hold what is asked of it; the message says what to do."""


class PeerLost(RuntimeError):
    """Another rank is gone, so that this one cannot go on; the message names its host and says where to look."""
