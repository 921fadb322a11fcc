"""DeepSpeed's files of a checkpoint, read without letting their pickles name anything but tensors and a few classes.

    step_00000100/engine/*.pt   zip archives of torch.save: data.pkl, a pickle, beside the bytes of the tensors

DeepSpeed reads them with `torch.load(weights_only=False)`, which runs whatever a pickle names. Here no file is read in
that way: `check_engine_files` reads every pickle with `weights_only` before the engine sees it (tensors are only
mapped), and `contained` makes the engine's own reader do the same, so that what was checked and what is loaded cannot
differ.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from pretrain.errors import CheckpointError


def allowed_classes() -> list[type]:
    """What DeepSpeed pickles besides tensors and containers, and torch does not know to be harmless."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def read_engine_file(path: Path, map_location: Any = "cpu", mmap: bool = True) -> Any:
    """What `torch.save` wrote, if its pickle names nothing but tensors, containers and `allowed_classes()`.

    Raises:
        CheckpointError: it names something else, which has not been run, or is no file of `torch.save`.
    """
    with torch.serialization.safe_globals(allowed_classes()):
        try:
            return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}: {_forbidden(path) or str(error).splitlines()[0]}") from None
        except OSError:
            raise
        except Exception as error:  # a damaged archive or pickle raises nearly every type there is
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path}: not a file of the engine ({reason}); restore it from a copy") from None


def check_engine_files(paths: list[Path]) -> None:
    """Reads the pickles of `paths`, without their tensors.

    Raises:
        CheckpointError: as `read_engine_file`.
    """
    for path in paths:
        read_engine_file(path)


@contextmanager
def contained(wrapped: Any) -> Iterator[None]:
    """For the body of a `with`: the checkpoint reader of a DeepSpeed engine is `read_engine_file`.

    Raises:
        CheckpointError: the engine was told to read in another way, past this reader.
    """
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    reader = wrapped.checkpoint_engine
    if type(reader) is not TorchCheckpointEngine or wrapped.load_universal_checkpoint():
        raise CheckpointError(
            f"engine.deepspeed chooses the checkpoint reader {type(reader).__name__}"
            f"{' and universal checkpoints' if wrapped.load_universal_checkpoint() else ''}, which unpickles without"
            " limits; leave `checkpoint` and `nebula` out of it"
        )
    # The files are read, not mapped: the optimizer keeps tensors, which must outlive the file.
    reader.load = lambda path, map_location=None: read_engine_file(Path(path), map_location, mmap=False)
    try:
        with redirect_stdout(StringIO()):  # BF16_Optimizer prints the name of a variable while it loads
            yield
    finally:
        del reader.load


@contextmanager
def recorded(wrapped: Any) -> Iterator[list[Path]]:
    """For the body of a `with`: a list that the files join which this rank's engine writes."""
    writer, written = wrapped.checkpoint_engine, []
    save = writer.save

    def record(state_dict: Any, path: Any, *arguments: Any, **options: Any) -> Any:
        written.append(Path(path))
        return save(state_dict, path, *arguments, **options)

    writer.save = record
    try:
        yield written
    finally:
        del writer.save


def _forbidden(path: Path) -> str | None:
    """What the pickle names that it may not, as a sentence; None where that cannot be told."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # only the wording depends on it: the file is refused already
        return None
    if not names:
        return None
    return (
        f"its pickle names {', '.join(names[:3])}, which a checkpoint has no use for and which would run code; nothing"
        " of it was run. Take the checkpoint from whoever trained it again, or from a copy that you trust"
    )
