"""The layer-bypass curves as a picture."""

from collections.abc import Collection, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .bypass import BypassCurve


def plot_bypass(curves: Sequence[BypassCurve], path: Path, kept: Collection[int] = ()) -> None:
    """Draws the harm of bypassing (loss minus the whole model's), against the first bypassed layer.

    Args:
        curves: one line each.
        path: PNG to write.
        kept: layers that stay in the smaller model, marked on the axis.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        harms = [loss - curve.baseline for loss in curve.losses]
        axes.plot(range(len(harms)), harms, marker="o", markersize=3.5, label=f"{curve.span} bypassed")
    # Linear near zero, where a bypass may even help, logarithmic where the ends are a hundred times worse.
    axes.set_yscale("symlog", linthresh=0.1)
    axes.axhline(0, color="black", linewidth=0.6)
    if kept:
        axes.plot(sorted(kept), [0] * len(kept), "^", color="black", markersize=6, label="kept", clip_on=False)
    axes.set_xlabel("first bypassed layer")
    axes.set_ylabel("loss minus the whole model's, nats")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


__all__ = ["plot_bypass"]
