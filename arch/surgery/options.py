"""What `python -m arch inherit` and `python -m arch bypass` are asked to do.

Imports neither torch nor transformers, so that `--help` and argument errors come at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .errors import SurgeryError

Method = Literal["greedy", "lazy_greedy", "one_pass", "first", "last", "uniform", "protected_uniform"]
Relaxation = Literal["hard_concrete", "gumbel_ste"]
TaylorForm = Literal["group", "element"]
Criterion = Literal["learned", "taylor", "l2", "l1", "first", "uniform", "random"]


@dataclass(frozen=True)
class LayerOptions:
    """How layers are chosen."""

    method: Method = "greedy"
    """greedy: remove the least harmful layer, measure again, and so on. lazy_greedy: the same, but measures again only
    layers that did little harm before; several times faster. one_pass: by one measurement. Baselines: the first, the
    last, evenly spaced, or both ends and evenly spaced between."""
    protect: int = 3
    """Layers at either end that stay (not with first, last, uniform)."""
    rows: int = 8
    """Calibration rows that harm is measured on."""
    indices: list[int] | None = None
    """Keep exactly these layers and measure nothing."""
    same_as: str | None = None
    """Keep the layers that an earlier call kept, whose `out` this is; to compare criteria on the same layers."""

    def __post_init__(self) -> None:
        if self.protect < 0:
            raise SurgeryError(f"layers.protect is {self.protect}; it must not be negative")
        if self.rows < 1:
            raise SurgeryError(f"layers.rows is {self.rows}; it must be at least 1")
        if self.indices is not None and self.same_as is not None:
            raise SurgeryError("give layers.indices or layers.same_as, not both")

    @property
    def measured(self) -> bool:
        """Whether the layers are still to be chosen."""
        return self.indices is None and self.same_as is None


@dataclass(frozen=True)
class MaskOptions:
    """How gates are trained."""

    relaxation: Relaxation = "hard_concrete"
    """The gate's distribution: hard_concrete, or gumbel_ste (binary gates, straight-through gradient)."""
    steps: int = 200
    """Optimizer steps; a few hundred to a few thousand."""
    batch: int = 4
    """Calibration rows per step."""
    learning_rate: float = 0.1
    """Of Adam, for the gates and for the multipliers."""
    constraint: Literal["layer", "kind"] = "layer"
    """Hold the mean gate to its target in every layer, as the target's shape needs, or over all layers of a kind."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate"):
            if getattr(self, name) <= 0:
                raise SurgeryError(f"masks.{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True)
class InheritConfig:
    """Cuts a small model out of a larger one: layers, heads, neurons, channels, vocabulary."""

    donor: str
    """The larger model: a run, checkpoint or export of ours, a directory or hub id of a LLaMA-family model, or GGUF."""
    config: str
    """Shape of the small model: a YAML of model fields (configs/*/models/*.yaml) or a transformers directory."""
    calibration: list[str]
    """Directories of token shards to judge by; training text, never a test or validation split."""
    out: str
    """Directory for the small model, in transformers format, with inherit.json and bypass.png."""
    vocabulary: str | None = None
    """Compressed tokenizer (or its vocabulary_map.json) that says which rows stay; without it all do."""
    tokenizer: str | None = None
    """Tokenizer directory to put beside the weights; by default the compressed one, else the donor's or the shards'."""
    criterion: Criterion = "learned"
    """What decides which heads, neurons, shortcut units and channels stay."""
    taylor: TaylorForm = "group"
    """Form of the taylor criterion: group is |sum of w g| over a unit, element the sum of |w g|."""
    layers: LayerOptions = field(default_factory=LayerOptions)
    """How layers are chosen."""
    masks: MaskOptions = field(default_factory=MaskOptions)
    """How the gates of the learned criterion are trained."""
    rescale_norm: bool = False
    """Multiply norm weights by RMS over the kept channels / RMS over all; off keeps them as they are."""
    rows: int = 32
    """Calibration rows for the taylor criterion and for rescale_norm."""
    loss_rows: int = 16
    """Further rows that the loss after every stage is measured on; nothing is chosen by them."""
    sequence_length: int = 256
    """Tokens per row."""
    batch: int = 4
    """Rows per forward pass."""
    seed: int = 0
    """Of the rows, the gates' noise and the random criterion."""
    device: str | None = None
    """Torch device; None takes the accelerator if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights, computed with and written."""
    overwrite: bool = False
    """Replace `out` if it exists and holds a model."""

    def __post_init__(self) -> None:
        _check_positive(self, "rows", "loss_rows", "batch")
        if self.sequence_length < 2:
            raise SurgeryError(f"sequence_length is {self.sequence_length}; a next token needs at least 2")


@dataclass(frozen=True)
class BypassConfig:
    """Measures what the loss becomes without runs of consecutive layers, at every position."""

    donor: str
    """The model: a run, checkpoint or export of ours, a directory or hub id of a LLaMA-family model, or GGUF."""
    calibration: list[str]
    """Directories of token shards to measure on; training text, never a test or validation split."""
    output: str
    """Directory for bypass.json and bypass.png."""
    spans: list[int] = field(default_factory=lambda: [1, 2, 3])
    """How many consecutive layers are bypassed, one curve each."""
    ends: int = 3
    """Positions at either end that the contrast with the middle counts as ends."""
    rows: int = 16
    """Calibration rows."""
    sequence_length: int = 256
    """Tokens per row."""
    batch: int = 4
    """Rows per forward pass."""
    seed: int = 0
    """Of the rows."""
    device: str | None = None
    """Torch device; None takes the accelerator if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""

    def __post_init__(self) -> None:
        _check_positive(self, "ends", "rows", "batch")
        if self.sequence_length < 2:
            raise SurgeryError(f"sequence_length is {self.sequence_length}; a next token needs at least 2")


def _check_positive(config: InheritConfig | BypassConfig, *names: str) -> None:
    for name in names:
        if (value := getattr(config, name)) < 1:
            raise SurgeryError(f"{name} is {value}; it must be at least 1")


__all__ = ["BypassConfig", "InheritConfig", "LayerOptions", "MaskOptions", "Relaxation", "TaylorForm"]
