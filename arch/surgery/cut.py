"""`Cut`: a model on its way to a smaller one, with the loss after every stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..pangu_pi import PanguPiConfig, PanguPiForCausalLM
from .compatibility import unit_counts
from .groups import Kind, unit_sets
from .measure import mean_loss
from .norms import norm_ratios
from .slicing import assemble, keep_layers, keep_rows, keep_units, scale_norms
from .vocabulary import KeptRows


@dataclass(frozen=True)
class Stage:
    """What one stage of the cut did."""

    name: str
    """donor, layers, heads, ffn, shortcut, hidden, norms, vocabulary, additions or tie."""
    loss: float | None
    """Mean next-token loss after it, in nats, before any further training; None where no measured row is left."""
    seconds: float
    """Choosing, cutting and measuring."""
    before: int | None = None
    """Layers, units per set, or rows of the vocabulary before."""
    after: int | None = None
    """And after."""
    reference: float | None = None
    """Where the measured rows change with the stage (vocabulary): the loss before it, on the same rows."""


class Cut:
    """A model that is being cut.

    Args:
        model: the donor; it is not changed.
        rows_NS: rows that the loss after every stage is measured on.
        batch: rows per forward pass.
        seconds: what it took to load the donor.
    """

    def __init__(self, model: PanguPiForCausalLM, rows_NS: torch.Tensor, batch: int = 4, seconds: float = 0.0) -> None:
        self.model, self.rows_NS, self.batch = model, rows_NS, batch
        self.stages: list[Stage] = []
        self._last = time.perf_counter() - seconds
        self._finish("donor", model)

    @property
    def loss(self) -> float | None:
        """The loss after the last stage."""
        return self.stages[-1].loss

    def layers(self, kept: Sequence[int]) -> None:
        """Keep these layers."""
        before = len(self.model.model.layers)
        model = keep_layers(self.model, kept) if len(kept) < before else self.model
        self._finish("layers", model, before, len(kept))

    def units(self, kind: Kind, kept: Sequence[torch.Tensor]) -> None:
        """Keep these units of one kind: ascending indices for every set."""
        before, after = unit_sets(self.model)[kind][0].units, len(kept[0])
        self._finish(kind, keep_units(self.model, kind, kept) if after < before else self.model, before, after)

    def hidden(self, kept: torch.Tensor, rescale_rows_NS: torch.Tensor | None = None) -> None:
        """Keep these residual channels; given rows, scale the norms by what the rows' RMS becomes (stage `norms`)."""
        ratios = None
        if rescale_rows_NS is not None and len(kept) < unit_sets(self.model)["hidden"][0].units:
            ratios = norm_ratios(self.model, kept, rescale_rows_NS, self.batch)
        self.units("hidden", [kept])
        if ratios is not None:
            self._finish("norms", scale_norms(self.model, ratios))

    def vocabulary(self, vocabulary: KeptRows, rows_NS: torch.Tensor | None = None) -> None:
        """Keep the rows of the vocabulary map.

        Args:
            vocabulary: which rows.
            rows_NS: what is measured from now on, in new ids; None takes the rows so far without the dropped tokens.
        """
        before = self.model.config.vocab_size
        smaller = keep_rows(self.model, vocabulary.kept)
        rows_NS = vocabulary.without_dropped(self.rows_NS) if rows_NS is None else rows_NS
        reference = mean_loss(self.model, vocabulary.kept[rows_NS], self.batch) if rows_NS.numel() else None
        self.rows_NS = rows_NS
        self._finish("vocabulary", smaller, before, len(vocabulary.kept), reference)

    def into(self, config: PanguPiConfig, seed: int = 0) -> None:
        """Move into a model of this configuration; what that changes has a stage of its own, `additions` or `tie`."""
        target = assemble(self.model, config, seed)
        source = set(dict(self.model.named_parameters()))
        if {name for name, _ in target.named_parameters()} - source - {"lm_head.weight"}:
            self._finish("additions", target)
        if config.tie_word_embeddings and "lm_head.weight" in source:
            self._finish("tie", target)
        self.model = target

    def _finish(
        self,
        name: str,
        model: PanguPiForCausalLM,
        before: int | None = None,
        after: int | None = None,
        reference: float | None = None,
    ) -> None:
        """Measure what a stage has made, and go on with it."""
        if self.stages and model is self.model:
            loss = self.loss
        else:
            loss = mean_loss(model, self.rows_NS, self.batch) if self.rows_NS.numel() else None
        self.model = model
        now = time.perf_counter()
        self.stages.append(Stage(name, loss, now - self._last, before, after, reference))
        self._last = now


def sizes_of(model: PanguPiForCausalLM, target: PanguPiConfig) -> dict[Kind, int]:
    """How many units of every kind that `model` has are to stay."""
    counts = unit_counts(target)
    return {kind: counts[kind] for kind in unit_sets(model)}


__all__ = ["Cut", "Stage", "sizes_of"]
