"""Causal language modelling on packed token shards: the task that text runs use.

    shards -> TokenSource -> {input_ids, labels, position_ids}_BS -> decoder -> chunked cross-entropy

Shapes: B batch, S sequence.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data_pipeline.loader import Batch
from data_pipeline.shards.token_source import TokenSource
from pretrain.attention_checks import check_document_isolation
from pretrain.tasks.decoder import SPECIAL_TOKENS, DecoderTask
from pretrain.tasks.facts import Suggestion
from tokenizer.fingerprint import tokenizer_hash
from tokenizer.load import load_tokenizer


class LanguageModelTask(DecoderTask):
    """Next-token prediction on text, with a PanGu-pi or LLaMA-shaped decoder.

    Args:
        shared, decoder: what every decoder task takes (`DecoderTask`). Shards are those of
            `python -m data_pipeline prepare`; a teacher must have been trained with the same tokenizer.
        sequence_length: tokens per sample.
        document_mask: hide every document of a packed row from the others.
    """

    default_optimizer = "muon"
    kind = "language model"
    text_samples = True
    more_data = "python -m data_pipeline prepare --input MORE.jsonl --tokenizer {checkpoint}/tokenizer --output MORE"
    suggestions = (
        Suggestion("No benchmark has been run.", "python -m eval lm --model {run} --tasks piqa,arc_easy,blimp", True),
        Suggestion(
            "See whether features collapse with depth.",
            "python -m eval collapse --model {run} --text HELD_OUT.jsonl --output {run}/eval",
        ),
        Suggestion(
            "Use the model anywhere: transformers format, checked.",
            "python -m arch export --model {checkpoint} --out {run}/export",
        ),
        Suggestion(
            "The whole PanGu-pi benchmark set from local files.",
            "python -m eval lm --model {run} --data BENCHMARKS --tasks pangu_pi",
        ),
    )
    mean_metrics = ("bits_per_byte",)

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

    def audit_teacher(self, batch: Batch, like: Tensor) -> dict[str, str]:
        rows = super().audit_teacher(batch, like)
        if self.document_mask and self.teacher is not None:
            rows["document mask"] = check_document_isolation(self.teacher.model(like.device, like.dtype), batch)
        return rows

    def evaluation_context(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}
