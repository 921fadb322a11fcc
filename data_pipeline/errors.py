"""What can go wrong between a raw file and a batch, one class per kind, so that callers can tell them apart.

Every message names the file (and the line, row or field), what was expected, what was found and what to do.
"""

from common.errors import DataError


class SourceError(DataError):
    """A source that cannot serve what is asked: empty, shorter than one sequence, or a sample number out of range."""


class OrderError(DataError):
    """Sizes, weights or batch shapes from which no order of samples can be made."""


class RemapError(DataError):
    """Shards that cannot be brought to another tokenizer exactly, or an output folder that holds something else."""


class PrepareError(DataError):
    """Raw input that `prepare` refuses, or an output folder that holds something else."""


class LabelError(DataError):
    """Labels that a charset cannot hold, more of them than was allowed."""


class PairsError(DataError):
    """A description of image pairs that cannot be met: no such column or rows, nothing to read."""


class PairError(DataError):
    """One row from which no record can be made: its images differ in size, or a label is out of range."""


class NoMasksError(PairError):
    """A row whose list of masks is empty, so that there is nothing to draw."""
