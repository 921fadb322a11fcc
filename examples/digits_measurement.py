"""What grids measure on the digits of examples/digits.py, beside validation (docs/add_a_measurement.md)."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from examples.digits import Digits, DigitsTask


def confusions(checkpoint: Path, _grid: Any) -> dict[str, float]:
    """Shares of held-out digits that are read wrongly, by digit: what grids measure beside validation."""
    weights, data = load_file(checkpoint / "model.safetensors"), Digits(held_out=True)
    model = DigitsTask(len(weights["0.bias"])).load_model(checkpoint)
    with torch.no_grad():
        wrong_N = model(torch.from_numpy(data.pixels_ND)).argmax(1).numpy() != data.digits_N
    return {f"wrong/{digit}": float(wrong_N[data.digits_N == digit].mean()) for digit in range(10)}
