"""The pictures of a compression: what the kept pieces cover, and what the cut costs in tokens."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tokenizer.compression.compress_report import CompressReport


def plot_kept(report: CompressReport, path: Path) -> None:
    """Coverage of the corpus by its k most frequent pieces, and where this vocabulary stands."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ranks, shares = zip(*report.curve, strict=True)
    axes.plot(ranks, shares, label="most frequent pieces")
    axes.plot([report.vocab_size], [report.coverage], "o", label=f"{report.vocab_size:,} kept: {report.coverage:.2%}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("pieces")
    axes.set_ylabel("share of the corpus's tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def plot_fit(report: CompressReport, path: Path) -> None:
    """Bytes per token of each sample, before and after."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = list(report.before)
    for offset, (name, fits) in enumerate(
        ((f"{report.donor_vocab_size:,} pieces", report.before), (f"{report.vocab_size:,} pieces", report.after))
    ):
        places = [place + 0.4 * offset - 0.2 for place in range(len(labels))]
        bars = axes.bar(places, [fits[label].bytes_per_token for label in labels], width=0.38, label=name)
        axes.bar_label(bars, fmt="%.2f")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("bytes per token")
    axes.margins(y=0.15)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120, metadata={"Software": None})
