"""How well a visual tokenizer gives images back, and how much of its codebook it uses.

Whatever is generated in its codes is limited by these numbers: the PSNR of a reconstruction is the ceiling of the PSNR
of any output.

Shapes: B images, S pixels of a side, N ids of an image, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from common.errors import DataError
from tokenizer.visual.base import VisualTokenizer

PERFECT_DB = 60.0
"""PSNR that an image given back exactly counts with; 8-bit rounding alone costs 59 dB, and infinity has no mean."""
BATCH = 64


@dataclass(frozen=True)
class Reconstruction:
    """Of one set of images."""

    images: int
    psnr: float
    """Decibels, mean over the images; an exact one counts as 60 dB."""
    ssim: float
    """Structural similarity, mean over the images."""
    codes_used: float
    """Share of the V codes that occur at all."""
    perplexity: float
    """exp of the entropy of the codes: how many equally frequent ones would be as informative."""

    def to_text(self) -> str:
        """One line."""
        return (
            f"{self.images:,} images: PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.3f}, "
            f"{self.codes_used:.1%} of the codes used, perplexity {self.perplexity:.1f}"
        )


def measure_reconstruction(
    tokenizer: VisualTokenizer,
    images: Iterable[np.ndarray],
    seen: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Reconstruction:
    """Encodes and decodes every image.

    Args:
        tokenizer: of the images' size.
        images: uint8 [S, S, 3] each.
        seen: told every batch and its reconstruction, both uint8 [B, S, S, 3].

    Raises:
        VisualTokenizerError: an image of another size.
        ValueError: no images.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    counts_V = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    psnr: list[float] = []
    ssim: list[float] = []
    for batch_BHWC in in_batches(images):
        ids_BN = tokenizer.encode(batch_BHWC)
        counts_V += np.bincount(ids_BN.reshape(-1), minlength=tokenizer.vocab_size)
        again_BHWC = tokenizer.decode(ids_BN)
        for image, again in zip(batch_BHWC, again_BHWC, strict=True):
            exact = np.array_equal(image, again)
            value = PERFECT_DB if exact else min(PERFECT_DB, peak_signal_noise_ratio(image, again, data_range=255))
            psnr.append(value)
            ssim.append(structural_similarity(image, again, data_range=255, channel_axis=2))
        if seen is not None:
            seen(batch_BHWC, again_BHWC)
    if not psnr:
        raise DataError("images: none to measure on")
    return Reconstruction(
        len(psnr), float(np.mean(psnr)), float(np.mean(ssim)), float((counts_V > 0).mean()), perplexity(counts_V)
    )


def perplexity(counts_V: np.ndarray) -> float:
    """exp of the entropy of a histogram of codes: V if all are equally frequent, 1 if there is only one."""
    shares = counts_V[counts_V > 0] / counts_V.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def in_batches(images: Iterable[np.ndarray], size: int = BATCH) -> Iterable[np.ndarray]:
    """Images [S, S, 3] as batches [B, S, S, 3], in order."""
    waiting: list[np.ndarray] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
