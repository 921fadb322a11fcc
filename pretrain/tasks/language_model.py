"""Causal language modelling on packed token shards: the task that text runs use.

    shards -> TokenSource -> {input_ids, labels, position_ids}_BS -> decoder -> chunked cross-entropy

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline import Batch, TokenSource
from pretrain.tasks.decoder import SPECIAL_TOKENS, DecoderTask
from tokenizer import load_tokenizer, tokenizer_hash


class LanguageModelTask(DecoderTask):
    """Next-token prediction on text, with a PanGu-pi or LLaMA-shaped decoder.

    Args:
        shared, decoder: what every decoder task takes (`DecoderTask`). Shards are those of
            `python -m data_pipeline prepare`; a teacher must have been trained with the same tokenizer.
        sequence_length: tokens per sample.
        document_mask: hide every document of a packed row from the others.
    """

    def __init__(self, *shared: Any, sequence_length: int = 512, document_mask: bool = True, **decoder: Any) -> None:
        super().__init__(*shared, **decoder)
        self.sequence_length, self.document_mask = sequence_length, document_mask

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the training shards were written with."""
        return load_tokenizer(self.tokenizer_directory)

    def hash_of_tokenizer(self, directory: Path) -> str:
        return tokenizer_hash(load_tokenizer(directory))

    def special_tokens(self) -> dict[str, int | None]:
        return {name: getattr(self.tokenizer, name) for name in SPECIAL_TOKENS}

    def save_tokenizer(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)

    def open_source(self, directory: str, training: bool) -> TokenSource:
        return TokenSource(directory, self.sequence_length, self.document_mask)

    def units_per_sample(self) -> tuple[int, str]:
        return self.sequence_length, "tokens"

    def validation_metrics(self, name: str, mean_loss: float) -> dict[str, float]:
        """Perplexity, and bits per byte: nats per label -> bits, over the bytes of text that a label stands for."""
        bytes_per_label = self._valid_sources[name].bytes_per_label
        return {
            "perplexity": math.exp(min(mean_loss, 700.0)),
            "bits_per_byte": mean_loss / math.log(2) / bytes_per_label,
        }

    def replay_description(self) -> dict[str, Any]:
        settings = {"sequence_length": self.sequence_length, "document_mask": self.document_mask}
        return super().replay_description() | settings

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        rows = super().audit(model, batch)
        if self.document_mask:
            rows["document mask"] = check_document_isolation(model, batch)
        return rows

    def evaluation_context(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}


@torch.no_grad()
def check_document_isolation(model: nn.Module, batch: Batch, tolerance: float = 1e-3) -> str:
    """Edits the first document of a real packed row and checks that no other document's hidden state moves.

    Returns a sentence for the audit table.

    Raises:
        RuntimeError: the mask leaks.
    """
    starts_BS = batch["position_ids"] == 0
    row = int(starts_BS.sum(dim=1).argmax())
    inputs_1S, positions_1S = batch["input_ids"][row : row + 1], batch["position_ids"][row : row + 1]
    edited_1S = (positions_1S[0] == 0).cumsum(0).unsqueeze(0) <= int(starts_BS[row, 0])
    changed_1S = torch.where(edited_1S, (inputs_1S + 1) % model.config.vocab_size, inputs_1S)  # type: ignore[union-attr]
    before = model.model(input_ids=inputs_1S, position_ids=positions_1S, use_cache=False).last_hidden_state  # type: ignore[operator]
    after = model.model(input_ids=changed_1S, position_ids=positions_1S, use_cache=False).last_hidden_state  # type: ignore[operator]
    documents = int(starts_BS[row].sum()) + int(not starts_BS[row, 0])
    if documents < 2:
        return "not testable on this batch: no row holds two documents"
    moved = float((after - before).abs()[~edited_1S].max() / before.abs().max())
    if moved > tolerance:
        raise RuntimeError(
            f"the document mask leaks: editing one document of a packed row moved another by {moved:.2e} "
            f"(attention {model.config._attn_implementation}); choose another task.attention"  # type: ignore[union-attr]
        )
    return f"isolates {documents} documents of a real row (largest change elsewhere {moved:.1e})"
