"""Noise and rain for photographs: what the input of a restoration task is made of (docs/methods/delvm.md: pairs).

Both are added to the finished image, after it was cut, so their sizes are in pixels of what a model sees. A generator
that is seeded by the number of the photograph gives every view and copy of it the same weather: copies show more of a
photograph, not more rain.

Shapes: S pixels of a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Corruption:
    """How strongly photographs are corrupted. Pairs of numbers are the ends of a range, drawn from once per image."""

    noise: tuple[float, float] = (10.0, 50.0)
    """Standard deviation of Gaussian noise, in grey levels of 255."""
    rain_density: tuple[float, float] = (0.004, 0.015)
    """Streaks per pixel."""
    rain_length: tuple[float, float] = (9.0, 17.0)
    """Length of a streak, in pixels."""
    rain_angle: float = 25.0
    """Largest angle of the rain from the vertical, in degrees."""
    rain_strength: tuple[float, float] = (0.2, 0.5)
    """Brightness that a streak adds, as a share of white."""

    def __post_init__(self) -> None:
        for name in ("noise", "rain_density", "rain_length", "rain_strength"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"corruption.{name}: expected 0 <= smallest <= largest, got {low}, {high}")
        if not 0 <= self.rain_angle <= 90:
            raise ValueError(f"corruption.rain_angle: expected 0 to 90 degrees, got {self.rain_angle}")


def add_noise(image: np.ndarray, corruption: Corruption, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise on uint8 [S, S, 3], clipped."""
    noise = rng.normal(0, rng.uniform(*corruption.noise), image.shape)
    return _to_pixels(image + noise)


def add_rain(image: np.ndarray, corruption: Corruption, rng: np.random.Generator) -> np.ndarray:
    """Sparse drops, blurred along one direction to streaks and added to uint8 [S, S, 3], clipped."""
    from scipy.signal import fftconvolve

    density, length, strength = (
        rng.uniform(*ends) for ends in (corruption.rain_density, corruption.rain_length, corruption.rain_strength)
    )
    angle = np.deg2rad(rng.uniform(-corruption.rain_angle, corruption.rain_angle))
    drops = (rng.random(image.shape[:2]) < density).astype(np.float64)
    streaks = fftconvolve(drops, _streak(length, angle), mode="same").clip(0, 1)
    return _to_pixels(image + 255 * strength * streaks[:, :, None])


def _streak(length: float, angle: float) -> np.ndarray:
    """One streak of brightness 1, antialiased, in the middle of an odd square; `angle` from the vertical, radians."""
    from skimage.draw import line_aa

    reach = max(1, int(np.ceil(length / 2)))
    down, right = round(np.cos(angle) * length / 2), round(np.sin(angle) * length / 2)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    rows, columns, values = line_aa(reach - down, reach - right, reach + down, reach + right)
    kernel[rows, columns] = values
    return kernel


def _to_pixels(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
