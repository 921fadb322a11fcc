"""Which layers of the donor stay: by measured harm, or by position (docs/methods/tiny_lm.md: layers)."""

from __future__ import annotations

from pathlib import Path

import torch

from arch.pangu_pi import PanguPiForCausalLM
from arch.surgery.bypass import least_harmful
from arch.surgery.errors import SurgeryError
from arch.surgery.options import LayerOptions
from common.untrusted_files import read_json

REPORT_FILE = "inherit.json"


def choose_layers(
    model: PanguPiForCausalLM, count: int, rows_NS: torch.Tensor, options: LayerOptions, batch: int = 4
) -> tuple[list[int], list[tuple[int, float]]]:
    """The layers that stay, ascending, and those removed one by one with the loss measured without each.

    Args:
        model: the donor.
        count: how many stay.
        rows_NS: calibration rows; the first `options.rows` are used.
        options: how to choose.
        batch: rows per forward pass.

    Raises:
        SurgeryError: `count` or the given indices do not fit the donor, or protect more layers than may stay.
    """
    depth = len(model.model.layers)
    if options.same_as is not None:
        return _checked(layers_of(options.same_as), count, depth), []
    if options.indices is not None:
        return _checked(options.indices, count, depth), []
    if not 1 <= count <= depth:
        raise SurgeryError(f"num_hidden_layers is {count}; the donor has {depth}")
    if count == depth:
        return list(range(depth)), []
    if options.method in ("greedy", "lazy_greedy", "one_pass", "protected_uniform") and 2 * options.protect > count:
        raise SurgeryError(
            f"layers.protect {options.protect} keeps {2 * options.protect} layers, the target has {count}; "
            f"give --layers.protect {count // 2} or less"
        )
    match options.method:
        case "first":
            return list(range(count)), []
        case "last":
            return list(range(depth - count, depth)), []
        case "uniform":
            return evenly(depth, count), []
        case "protected_uniform":
            ends = options.protect
            inner = [ends + index for index in evenly(depth - 2 * ends, count - 2 * ends)]
            return [*range(ends), *inner, *range(depth - ends, depth)], []
        case _:
            return least_harmful(model, rows_NS[: options.rows], depth - count, options.protect, options.method, batch)


def layers_of(directory: str | Path) -> list[int]:
    """The layers that an earlier cut kept.

    Raises:
        SurgeryError: the directory is not the `out` of one.
    """
    file = Path(directory) / REPORT_FILE
    try:
        return [int(index) for index in read_json(file, SurgeryError)["layers"]]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise SurgeryError(
            f"layers.same_as: {file} does not say which layers were kept ({type(error).__name__}); "
            "give the --out of an earlier `python -m arch inherit`"
        ) from None


def evenly(available: int, count: int) -> list[int]:
    """`count` of `available` indices at even distances, each from the middle of its stretch."""
    return [(2 * index + 1) * available // (2 * count) for index in range(count)]


def _checked(indices: list[int], count: int, depth: int) -> list[int]:
    if sorted(set(indices)) != indices or not all(0 <= index < depth for index in indices):
        raise SurgeryError(f"layers.indices must ascend and lie between 0 and {depth - 1}; found {indices}")
    if len(indices) != count:
        raise SurgeryError(f"layers.indices names {len(indices)} layers, the target has num_hidden_layers {count}")
    return indices


__all__ = ["choose_layers", "evenly"]
