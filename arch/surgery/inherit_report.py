"""What `inherit` says: one screen of text, `inherit.json` and `bypass.png`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .bypass import BypassCurve
from .bypass_plot import plot_bypass
from .cut import Stage
from .groups import Kind
from .layers import REPORT_FILE
from .mask_training import MaskTraining
from .options import InheritConfig

LARGEST_MISS = 0.01  # of a mean gate from its target (docs/methods/tiny_lm.md: learned masks)


@dataclass(frozen=True)
class InheritReport:
    """A cut and its cost."""

    config: InheritConfig
    """What was asked for."""
    shape: dict[str, Any]
    """The small model's configuration, where it differs from the defaults."""
    donor_parameters: int
    """Parameters of the donor."""
    parameters: int
    """And of the small model."""
    tied: tuple[bool, bool]
    """Whether the donor's head is tied to its embedding, and the small model's."""
    stages: list[Stage]
    """In the order of the cut."""
    layers: list[int]
    """The donor's layers that stay."""
    removed: list[tuple[int, float]]
    """Layers in the order of their removal, with the loss measured without each; empty for choices by position."""
    selection: dict[Kind, list[list[int]]]
    """The donor's units that stay, by kind: for every kept layer (one list for hidden). Heads are key/value heads."""
    curve: BypassCurve | None
    """The loss without each single layer; None where the layers were given."""
    masks: MaskTraining | None
    """How the gates of the learned criterion fared."""
    seconds: float
    """Altogether, without the writing."""

    def write(self, directory: Path) -> None:
        """Write inherit.json, and bypass.png where a curve was measured."""
        (directory / REPORT_FILE).write_text(json.dumps(self._content()) + "\n", encoding="utf-8")
        if self.curve is not None:
            plot_bypass([self.curve], directory / "bypass.png", kept=self.layers)

    def _content(self) -> dict[str, Any]:
        masks = self.masks and {
            "target": self.masks.targets,
            "reached": self.masks.reached,
            "losses": [round(loss, 4) for loss in self.masks.losses],
        }
        return {
            "format": 1,
            "config": asdict(self.config),
            "shape": self.shape,
            "donor_parameters": self.donor_parameters,
            "parameters": self.parameters,
            "stages": [asdict(stage) for stage in self.stages],
            "layers": self.layers,
            "removed": [{"layer": layer, "loss": loss} for layer, loss in self.removed],
            "units": self.selection,
            "bypass": self.curve and asdict(self.curve),
            "masks": masks,
            "seconds": self.seconds,
        }

    def text(self) -> str:
        """One screen: a line per stage, and whatever deserves a warning."""
        share = self.parameters / self.donor_parameters
        lines = [
            f"{self.donor_parameters:,} parameters -> {self.parameters:,} ({share:.1%}), "
            f"criterion {self.config.criterion}, {self.seconds:.0f} s",
            "",
            f"{'stage':<12} {'from':>7} {'to':>7} {'loss':>8} {'change':>8} {'seconds':>8}",
        ]
        previous = None
        for stage in self.stages:
            base = stage.reference if stage.reference is not None else previous
            change = f"{stage.loss - base:+8.3f}" if stage.loss is not None and base is not None else f"{'':8}"
            sizes = f"{stage.before:>7} {stage.after:>7}" if stage.before is not None else " " * 15
            note = "" if stage.reference is None else f"   {stage.reference:.3f} before, on the same tokens"
            loss = "       -" if stage.loss is None else f"{stage.loss:8.3f}"
            lines.append(f"{stage.name:<12} {sizes} {loss} {change} {stage.seconds:8.1f}{note}")
            previous = stage.loss
        lines += ["", f"layers kept: {' '.join(map(str, self.layers))}"]
        if self.curve is not None:
            lines.append(contrast_line(self.curve, self.config.layers.protect or 1))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes())])

    def notes(self) -> list[str]:
        """What a user should know before training on."""
        notes, loss = [], self.stages[-1].loss
        uniform = math.log(self.shape["vocab_size"]) if "vocab_size" in self.shape else None
        if loss is not None and uniform is not None and loss > uniform:
            hint = "" if self.config.rescale_norm else "; try --rescale_norm true"
            notes.append(
                f"before training the loss is above that of guessing uniformly ({uniform:.2f}): the logits are "
                f"confident and wrong, which the first steps of training undo{hint}"
            )
        match self.tied:
            case (True, False):
                notes.append("the donor's head was tied to its embedding; the head starts as a copy of it")
            case (False, True):
                notes.append("the donor's head was dropped: the target ties it to the embedding, which was kept")
        if self.masks is not None and self.masks.largest_miss > LARGEST_MISS:
            notes.append(
                f"the gates missed their targets by up to {self.masks.largest_miss:.3f}; the sizes are exact all the "
                "same, but more --masks.steps would choose better"
            )
        return notes


def contrast_line(curve: BypassCurve, ends: int) -> str:
    """Ends against middle in one line."""
    contrast = curve.contrast(ends)
    return (
        f"bypassing {curve.span}: first {ends} {contrast['first']:+.3f}, middle {contrast['middle']:+.3f}, "
        f"last {ends} {contrast['last']:+.3f} nats on average; ends / middle = {contrast['ratio']:.1f}"
    )


__all__ = ["InheritReport", "contrast_line"]
