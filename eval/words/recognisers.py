"""Text recognisers side by side: ours, and ONNX ones from packages, behind one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

import arch.clip4str.decoding
import arch.parseq.decoding
from arch.device import choose_device
from arch.parseq.decoding import Mode
from common.find_model import folder_with
from data_pipeline.words.source import to_array
from eval.models import ModelLoadError
from pretrain.tasks import clip4str, word_recognition
from tokenizer.characters import CharacterTokenizer

RAPIDOCR = "rapidocr"


class Kind(NamedTuple):
    """How one of our architectures is opened and asked."""

    load: Callable[[Path], tuple[Any, CharacterTokenizer]]
    recognise: Callable[..., torch.Tensor]


KINDS = {
    word_recognition.CONFIG_FILE: Kind(word_recognition.load_recogniser, arch.parseq.decoding.recognise),
    clip4str.CONFIG_FILE: Kind(clip4str.load_clip4str, arch.clip4str.decoding.recognise),
}
"""By the file that lies beside the weights."""


class Reading(NamedTuple):
    """What a recogniser reads in an image."""

    text: str
    confidence: float
    """Product of the probabilities of the characters and of the end; for other recognisers their own score."""


class Recogniser(Protocol):
    """Reads word images."""

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """One reading per RGB image."""


class OwnRecogniser:
    """A model of ours.

    Args:
        directory: checkpoint, export or run.
        device: torch device; None takes the accelerator if there is one.
        mode: autoregressive or parallel decoding.
        refinements: times that every character is predicted again.
    """

    def __init__(self, directory: Path, device: str | None, mode: Mode, refinements: int) -> None:
        self.device = choose_device(device)
        found = find_recogniser(directory)
        self.kind = next(kind for name, kind in KINDS.items() if (found / name).is_file())
        self.model, self.tokenizer = self.kind.load(found)
        self.model.to(self.device)
        self.mode, self.refinements = mode, refinements

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        size = self.model.config.image_shape
        pixels = torch.from_numpy(np.stack([to_array(image, size) for image in images])).to(self.device)
        logits_BQC = self.kind.recognise(self.model, self.model.config.normalise(pixels), self.mode, self.refinements)
        best_BQ, ids_BQ = logits_BQC.softmax(-1).max(-1)
        readings = []
        for chances_Q, ids_Q in zip(best_BQ.cpu().numpy(), ids_BQ.cpu().numpy(), strict=True):
            text = self.tokenizer.decode(ids_Q)
            readings.append(Reading(text, float(chances_Q[: len(text) + 1].prod())))
        return readings


class RapidRecogniser:
    """The recogniser of the package rapidocr_onnxruntime (PP-OCR, ONNX), without its detector."""

    def __init__(self) -> None:
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise ModelLoadError(
                f"model {RAPIDOCR!r}: the package is not there ({error}); pip install rapidocr-onnxruntime"
            ) from None
        self._engine = RapidOCR()

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        readings = []
        for image in images:
            found, _ = self._engine(np.asarray(image)[:, :, ::-1], use_det=False, use_cls=False, use_rec=True)
            readings.append(Reading(found[0][0], float(found[0][1])) if found else Reading("", 0.0))
        return readings


def find_recogniser(path: Path) -> Path:
    """The folder with the weights: the path itself, or the newest checkpoint of a run.

    Raises:
        ModelLoadError: there is none.
    """
    if folder := folder_with(path, *KINDS):
        return folder
    raise ModelLoadError(
        f"model {str(path)!r}: neither a text recogniser ({' or '.join(KINDS)}) nor a run with a checkpoint"
    )


def open_recogniser(name: str, device: str | None, mode: Mode, refinements: int) -> Recogniser:
    """`rapidocr`, or a folder of ours."""
    return RapidRecogniser() if name == RAPIDOCR else OwnRecogniser(Path(name), device, mode, refinements)
