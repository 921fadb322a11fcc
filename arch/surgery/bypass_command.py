"""`python -m arch bypass`: the skip-1, skip-2, skip-3 curves of a model, as JSON, picture and one screen of text."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from arch.surgery.bypass import bypass_curve
from arch.surgery.bypass_plot import plot_bypass
from arch.surgery.calibration import draw_rows, open_shards
from arch.surgery.errors import CalibrationError, SurgeryError
from arch.surgery.inherit import load_donor
from arch.surgery.inherit_report import contrast_line
from arch.surgery.options import BypassConfig
from common.atomic_files import write_json
from common.find_model import resolve_model


def bypass(config: BypassConfig) -> str:
    """Measure, write bypass.json and bypass.png, and return the screen of text.

    Raises:
        SurgeryError: a span is larger than the model is deep.
        ShardError: the shards cannot be read.
        CalibrationError: they are too short, or hold ids that the model lacks.
    """
    shards = open_shards(config.calibration)
    model = load_donor(resolve_model(config.donor), config.device, config.dtype)
    if shards.vocab_size > model.config.vocab_size:
        raise CalibrationError(
            f"{shards.directories[0]}: its tokenizer has {shards.vocab_size} pieces, the model only "
            f"{model.config.vocab_size} embeddings; prepare the shards with the model's tokenizer"
        )
    if 2 * config.ends >= (positions := model.config.num_hidden_layers - max(config.spans) + 1):
        raise SurgeryError(
            f"the model has {model.config.num_hidden_layers} layers, so there are {positions} positions to bypass "
            f"{max(config.spans)} and no middle between {config.ends} at either end; use smaller --ends or --spans"
        )
    (rows_NS,) = draw_rows(shards, [config.rows], config.sequence_length, config.seed)
    curves = [bypass_curve(model, rows_NS, span, config.batch) for span in config.spans]
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    contrasts = [curve.contrast(config.ends) for curve in curves]
    content = {
        "format": 1,
        "config": asdict(config),
        "curves": [asdict(curve) | {"contrast": contrast} for curve, contrast in zip(curves, contrasts, strict=True)],
    }
    with tempfile.TemporaryDirectory(prefix=".bypass.", dir=output) as scratch:
        plot_bypass(curves, Path(scratch) / "bypass.png")
        (Path(scratch) / "bypass.png").replace(output / "bypass.png")
    write_json(output / "bypass.json", content, ascii_only=True)  # last: it says that all is there
    tokens = rows_NS.numel()
    head = (
        f"{config.donor}: {model.config.num_hidden_layers} layers, loss {curves[0].baseline:.4f} on {tokens:,} tokens"
    )
    return "\n".join([head, *(contrast_line(curve, config.ends) for curve in curves), f"written to {output}"])


__all__ = ["bypass"]
