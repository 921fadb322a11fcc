"""A codebook of pixel patches, found by k-means: it needs no network (docs/methods/delvm.md: visual tokenizers).

Every code *is* a patch of 8-bit pixels, all codes differ, and an image patch gets the code that is nearest in squared
distance, the lowest id among equals. So decoding is a table look-up and encode(decode(ids)) = ids exactly.

Fitting 512 codes on 85,000 patches of 8 x 8 pixels takes about half a minute on one core. Encoding costs one matrix
product.

Shapes: B images, N ids of an image, M patches, P pixels of a patch's side, D = 3 * P * P values of a patch, V codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from tokenizer.visual.base import VisualTokenizer, VisualTokenizerError

CHUNK = 8192
"""Patches that are compared with all codes at once."""
BATCH = 2048
"""Patches of a k-means update."""
PASSES = 20
"""Times that k-means sees every patch."""


class PatchTokenizer(VisualTokenizer):
    """A table of patches.

    Args:
        patches_VD: uint8 [V, 3 * P * P], distinct rows; a row holds a patch's pixels as [P, P, 3].
        image_size: S, a multiple of P.

    Raises:
        VisualTokenizerError: the sizes do not fit together, or two codes are equal.
    """

    kind = "patches"

    def __init__(self, patches_VD: np.ndarray, image_size: int) -> None:
        if patches_VD.dtype != np.uint8 or patches_VD.ndim != 2 or not len(patches_VD):
            raise VisualTokenizerError(f"patches: expected uint8 [V, D], found {patches_VD.dtype} {patches_VD.shape}")
        self.patch = round((patches_VD.shape[1] / 3) ** 0.5)
        if 3 * self.patch**2 != patches_VD.shape[1] or image_size < 1 or image_size % self.patch:
            raise VisualTokenizerError(
                f"patches: {patches_VD.shape[1]} values are no square patch that divides {image_size} x {image_size}"
            )
        if len(np.unique(patches_VD, axis=0)) != len(patches_VD):
            raise VisualTokenizerError("patches: two codes are equal")
        self.image_size, self.grid, self.vocab_size = image_size, image_size // self.patch, len(patches_VD)
        self._patches_VD = patches_VD

    def codebook(self) -> np.ndarray:
        return (self._patches_VD / 127.5 - 1.0).astype(np.float32)

    def weights(self) -> dict[str, np.ndarray]:
        return {"patches": self._patches_VD}

    @classmethod
    def from_weights(cls, description: dict[str, Any], weights: dict[str, np.ndarray]) -> PatchTokenizer:
        """The tokenizer of a directory's two files. Raises VisualTokenizerError where they do not fit together."""
        if set(weights) != {"patches"}:
            raise VisualTokenizerError(f"expected one tensor 'patches', found {', '.join(sorted(weights)) or 'none'}")
        return cls(weights["patches"], description["image_size"])

    def _encode(self, images_BHWC: np.ndarray) -> np.ndarray:
        patches_MD = to_patches(images_BHWC, self.patch)
        return nearest_codes(patches_MD, self._patches_VD).reshape(len(images_BHWC), self.tokens_per_image)

    def _decode(self, ids_BN: np.ndarray) -> np.ndarray:
        g, p = self.grid, self.patch
        tiles = self._patches_VD[ids_BN].reshape(-1, g, g, p, p, 3)
        return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(-1, g * p, g * p, 3)


def to_patches(images_BHWC: np.ndarray, patch: int) -> np.ndarray:
    """uint8 [B, S, S, 3] -> [B * N, D], patches of an image in raster order."""
    size = images_BHWC.shape[1]
    g = size // patch
    tiles = images_BHWC.reshape(-1, g, patch, g, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(-1, patch * patch * 3)


def nearest_codes(patches_MD: np.ndarray, codes_VD: np.ndarray) -> np.ndarray:
    """The code of least squared distance for every patch, the lowest id among equals: int64 [M].

    argmin |x - c|^2 = argmin |c|^2 - 2 x.c, on whole numbers around zero. As long as 3 D 128^2 fits into the 24 bits of
    a float32 (P <= 10) its sums are exact, hence so are ties; larger patches take float64.
    """
    exact = np.float32 if 3 * codes_VD.shape[1] * 128**2 <= 2**24 else np.float64
    codes = codes_VD.astype(exact) - 128
    squares_V = (codes * codes).sum(axis=1)
    ids_M = np.empty(len(patches_MD), dtype=np.int64)
    for start in range(0, len(patches_MD), CHUNK):
        part = patches_MD[start : start + CHUNK].astype(exact) - 128
        ids_M[start : start + CHUNK] = (squares_V - 2 * (part @ codes.T)).argmin(axis=1)
    return ids_M


def sample_patches(images: Iterable[np.ndarray], patch: int, limit: int, seed: int) -> np.ndarray:
    """All patches of images [S, S, 3] (or batches of them), or a random `limit` of these: uint8 [M, D].

    Never holds many more than 2 * limit patches: every patch draws a number, and the lowest numbers stay.
    """
    rng = np.random.default_rng(seed)
    kept_MD = np.zeros((0, 3 * patch * patch), dtype=np.uint8)
    drawn_M = np.zeros(0)
    waiting: list[np.ndarray] = []

    def merge() -> None:
        nonlocal kept_MD, drawn_M
        new_MD = np.concatenate(waiting)
        kept_MD, drawn_M = np.concatenate([kept_MD, new_MD]), np.concatenate([drawn_M, rng.random(len(new_MD))])
        lowest = np.sort(np.argsort(drawn_M, kind="stable")[:limit])
        kept_MD, drawn_M = kept_MD[lowest], drawn_M[lowest]
        waiting.clear()

    for image in images:
        waiting.append(to_patches(image.reshape(-1, *image.shape[-3:]), patch))
        if sum(map(len, waiting)) >= limit:
            merge()
    if waiting:
        merge()
    if not len(kept_MD):
        raise VisualTokenizerError("images: none to fit a codebook on")
    return kept_MD


def fit_patches(
    images: Iterable[np.ndarray],
    image_size: int,
    codes: int = 512,
    patch: int = 8,
    seed: int = 0,
    limit: int = 100_000,
    progress: bool = True,
) -> PatchTokenizer:
    """Fits a codebook by mini-batch k-means; the same images and seed give the same bytes.

    Args:
        images: training images only, uint8 [S, S, 3] or batches [B, S, S, 3].
        image_size: S.
        codes: V. Where rounded centres coincide, the patches that are represented worst become codes instead.
        patch: P, pixels of a patch's side.
        seed: of the choice of patches, of k-means++ and of the order of updates.
        limit: patches to fit on at most.
        progress: whether to show a bar.

    Raises:
        VisualTokenizerError: fewer distinct patches than codes, or `patch` does not divide `image_size`.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if image_size % patch:
        raise VisualTokenizerError(f"patch: {patch} does not divide image_size {image_size}")
    pixels_MD = sample_patches(images, patch, limit, seed)
    patches_MD = pixels_MD.astype(np.float32)
    distinct = len(np.unique(pixels_MD, axis=0))
    if distinct < codes:
        raise VisualTokenizerError(f"codes: the images have only {distinct} distinct patches, fewer than {codes} codes")
    rng = np.random.default_rng(seed)
    first = patches_MD[rng.permutation(len(patches_MD))[: max(8 * codes, BATCH)]]
    kmeans = MiniBatchKMeans(codes, batch_size=BATCH, n_init=1, random_state=seed)
    # One thread: sums in another order would round otherwise, and another machine would get another codebook.
    with threadpool_limits(1):
        kmeans.partial_fit(first)  # k-means++ on these
        for _ in tqdm(range(PASSES), desc="k-means", unit="pass", disable=not progress):
            order_M = rng.permutation(len(patches_MD))
            for start in range(0, len(order_M), BATCH):
                kmeans.partial_fit(patches_MD[order_M[start : start + BATCH]])
    centres_VD = np.rint(kmeans.cluster_centers_).clip(0, 255).astype(np.uint8)
    _, kept = np.unique(centres_VD, axis=0, return_index=True)
    return PatchTokenizer(_filled_up(centres_VD[np.sort(kept)], pixels_MD, codes), image_size)


def _filled_up(codes_VD: np.ndarray, patches_MD: np.ndarray, count: int) -> np.ndarray:
    """The codes, and after them as many of the patches as make them `count`: the distinct ones farthest from a code."""
    nearest_MD = codes_VD[nearest_codes(patches_MD, codes_VD)]
    distance_M = ((patches_MD.astype(np.int64) - nearest_MD) ** 2).sum(axis=1)
    farthest_MD = patches_MD[np.argsort(-distance_M, kind="stable")]
    _, first = np.unique(farthest_MD, axis=0, return_index=True)
    return np.concatenate([codes_VD, farthest_MD[np.sort(first)[: count - len(codes_VD)]]])
