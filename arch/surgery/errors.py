"""What can be wrong with a request to cut a model."""

from common.errors import InputError


class SurgeryError(InputError, ValueError):
    """The donor cannot be cut to the target; the message says which field of the target to change, and to what."""


class CalibrationError(InputError, ValueError):
    """The calibration shards are too short, or are not for this donor and vocabulary."""


__all__ = ["CalibrationError", "SurgeryError"]
