"""Each task's own measure of an output image against the true target's pixels.

    psnr, ssim      mean over images (scikit-image)
    miou            every pixel takes the class of the nearest palette colour; intersection over union of each class
                    over all images together, mean over the classes that occur; void in the truth does not count
    f1              a pixel is an edge where its grey level is above one threshold; over all images together

Shapes: N images of H x W pixels, uint8 RGB; C classes.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.pairs.tasks import CAMVID_CLASSES, CAMVID_PALETTE
from tokenizer.visual.reconstruction import PERFECT_DB

SEGMENTATION, EDGES = "segmentation", "edges"
VOID = list(CAMVID_CLASSES).index("void")
EDGE_THRESHOLD = 64
"""Grey level, of 255, above which a pixel counts as an edge."""


def mean_psnr(outputs_NHWC: np.ndarray, truths_NHWC: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in dB; an output that equals the truth counts with 60 dB."""
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):
        values = [
            peak_signal_noise_ratio(truth, output, data_range=255)
            for output, truth in zip(outputs_NHWC, truths_NHWC, strict=True)
        ]
    return float(np.minimum(values, PERFECT_DB).mean())


def mean_ssim(outputs_NHWC: np.ndarray, truths_NHWC: np.ndarray) -> float:
    """Mean structural similarity, in windows of 7 x 7 pixels."""
    from skimage.metrics import structural_similarity

    pairs = zip(outputs_NHWC, truths_NHWC, strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs]))


def nearest_class(images_NHWC: np.ndarray, palette_C3: np.ndarray) -> np.ndarray:
    """Number of the palette colour that is nearest to each pixel (Euclidean in RGB): int64 [N, H, W]."""
    from scipy.spatial import cKDTree

    return cKDTree(palette_C3.astype(np.float64)).query(images_NHWC.astype(np.float64))[1]


def mean_iou(predicted_NHW: np.ndarray, true_NHW: np.ndarray, classes: int, void: int) -> float:
    """Mean intersection over union; classes that neither the truth nor the prediction has are left out.

    Args:
        predicted_NHW: class of each pixel; void where a model drew void, which is then wrong.
        true_NHW: class of each pixel; those of class `void` do not count.
        classes: how many there are, void included.
        void: which one it is.
    """
    counted = true_NHW != void
    confusion_CC = np.bincount(
        true_NHW[counted] * classes + predicted_NHW[counted], minlength=classes * classes
    ).reshape(classes, classes)
    hits_C = np.diag(confusion_CC)
    union_C = confusion_CC.sum(0) + confusion_CC.sum(1) - hits_C
    occurring = (union_C > 0) & (np.arange(classes) != void)
    return float((hits_C[occurring] / union_C[occurring]).mean()) if occurring.any() else 0.0


def edge_f1(outputs_NHWC: np.ndarray, truths_NHWC: np.ndarray) -> float:
    """F1 of edge pixels over all images together; 1 if there are none on either side."""
    found, true = (images.mean(-1) > EDGE_THRESHOLD for images in (outputs_NHWC, truths_NHWC))
    both, either = (found & true).sum(), found.sum() + true.sum()
    return float(2 * both / either) if either else 1.0


def measure(task: str, outputs_NHWC: np.ndarray, truths_NHWC: np.ndarray) -> dict[str, float]:
    """The measures of a task, its own first: segmentation {miou}, edges {psnr, ssim, f1}, all others {psnr, ssim}."""
    if task == SEGMENTATION:
        predicted_NHW, true_NHW = (nearest_class(images, CAMVID_PALETTE) for images in (outputs_NHWC, truths_NHWC))
        return {"miou": mean_iou(predicted_NHW, true_NHW, len(CAMVID_PALETTE), VOID)}
    pixels = {"psnr": mean_psnr(outputs_NHWC, truths_NHWC), "ssim": mean_ssim(outputs_NHWC, truths_NHWC)}
    return {**pixels, "f1": edge_f1(outputs_NHWC, truths_NHWC)} if task == EDGES else pixels


def mean_answer(task: str, targets_NHWC: np.ndarray) -> np.ndarray:
    """What to answer without looking at the query: uint8 [H, W, 3].

    The mean of the targets; for segmentation the most frequent class of each pixel, void not counted, in its colour.
    """
    if task != SEGMENTATION:
        return targets_NHWC.mean(0).round().astype(np.uint8)
    classes_NHW = nearest_class(targets_NHWC, CAMVID_PALETTE)
    votes_CHW = np.stack([(classes_NHW == number).sum(0) for number in range(VOID)])
    return CAMVID_PALETTE[votes_CHW.argmax(0)]
