"""Causal language modelling on packed token shards: the Task that text runs use.

    shards -> TokenSource -> {input_ids, labels, position_ids}_BS -> decoder -> chunked cross-entropy

Shapes: B batch, S sequence, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from arch import ModelConfigError, PanguPiForCausalLM, count_flops, load_causal_lm, load_model_config
from data_pipeline import Batch, Source, TokenSource, collate_tokens
from pretrain.errors import ConfigurationError
from pretrain.loss import IGNORE_INDEX, linear_cross_entropy
from pretrain.tasks.base import LossOutput, Task, seeded_build
from tokenizer import load_tokenizer, tokenizer_hash


class LanguageModelTask(Task):
    """Next-token prediction with a PanGu-pi or LLaMA-shaped decoder.

    Args:
        model: shape of the model: a YAML of PanguPiConfig fields (configs/models/*.yaml) or a transformers directory.
        train: directories of token shards (written by `python -m data_pipeline prepare`).
        valid: held-out directories of token shards by name, such as {en: ..., zh: ...}.
        weights: mixture weights of `train`; None mixes in proportion to size.
        sequence_length: tokens per sample.
        document_mask: hide every document of a packed row from the others.
        attention: attention implementation of transformers (sdpa, flash_attention_2, flex_attention, eager).
        model_overrides: fields of the model's shape to change, such as {series_terms: 1}.
        initial_weights: directory of a model to start from instead of random values.
        loss_chunk_elements: logits that exist at one time in the loss.
    """

    def __init__(
        self,
        model: str,
        train: list[str],
        valid: dict[str, str] | None = None,
        weights: list[float] | None = None,
        sequence_length: int = 512,
        document_mask: bool = True,
        attention: str = "sdpa",
        model_overrides: dict[str, Any] | None = None,
        initial_weights: str | None = None,
        loss_chunk_elements: int = 2**22,
    ) -> None:
        if not train:
            raise ConfigurationError("task.train is empty: name at least one directory of token shards")
        self.train, self.valid, self.weights = train, valid or {}, weights
        self.sequence_length, self.document_mask, self.attention = sequence_length, document_mask, attention
        self.initial_weights, self.loss_chunk_elements = initial_weights, loss_chunk_elements
        try:
            self.model_config = load_model_config(model, model_overrides)
        except ModelConfigError as error:
            raise ConfigurationError(f"task.model or task.model_overrides: {error}") from None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the training shards were written with."""
        return load_tokenizer(Path(self.train[0]) / "tokenizer")

    def _source(self, directory: str) -> TokenSource:
        source = TokenSource(directory, self.sequence_length, self.document_mask)
        if source.meta.vocab_size > self.model_config.vocab_size:
            raise ConfigurationError(
                f"{directory}: its tokenizer has {source.meta.vocab_size} pieces, the model only "
                f"{self.model_config.vocab_size} embeddings; set task.model_overrides.vocab_size"
            )
        return source

    @cached_property
    def _train_sources(self) -> list[TokenSource]:
        return [self._source(directory) for directory in self.train]

    @cached_property
    def _valid_sources(self) -> dict[str, TokenSource]:
        return {name: self._source(directory) for name, directory in self.valid.items()}

    def training_sources(self) -> tuple[Sequence[Source], Sequence[float] | None]:
        sources = self._train_sources
        hashes = {directory: source.meta.tokenizer_hash for directory, source in zip(self.train, sources, strict=True)}
        hashes.update({self.valid[name]: source.meta.tokenizer_hash for name, source in self._valid_sources.items()})
        if len(set(hashes.values())) > 1:
            listing = ", ".join(f"{directory}: {value[:12]}" for directory, value in hashes.items())
            raise ConfigurationError(f"shards of different tokenizers cannot be mixed ({listing})")
        return sources, self.weights

    def validation_sources(self) -> Mapping[str, Source]:
        return self._valid_sources

    def build_model(self, seed: int) -> nn.Module:
        if self.initial_weights is not None:
            model = load_causal_lm(self.initial_weights, attn_implementation=self.attention)
            for field in ("vocab_size", "hidden_size", "num_hidden_layers", "series_terms", "shortcut_count"):
                have, want = getattr(model.config, field), getattr(self.model_config, field)
                if have != want:
                    raise ConfigurationError(f"{self.initial_weights}: {field} is {have}, the run's model has {want}")
            return model
        config = self.model_config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(self.tokenizer, name))
        config.max_position_embeddings = max(config.max_position_embeddings, self.sequence_length)
        config._attn_implementation = self.attention
        try:
            return seeded_build(lambda: PanguPiForCausalLM(config), seed)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"task.attention {self.attention!r} or the model's shape: {error}") from error

    def load_model(self, directory: Path) -> nn.Module:
        disable_progress_bar()  # it would tear the caller's own bar apart
        return load_causal_lm(directory, attn_implementation=self.attention)

    def prepare_model(self, model: nn.Module, activation_checkpointing: bool, compile_model: bool) -> None:
        super().prepare_model(model, activation_checkpointing, compile_model=False)
        if compile_model:
            # Block by block: compiles once for all layers and leaves ZeRO's hooks outside of the graphs.
            model.model.compile_layers()  # type: ignore[union-attr, operator]

    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        return collate_tokens(samples)

    def weight(self, batch: Batch) -> float:
        return float((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        hidden_BSD = model.model(  # type: ignore[operator]
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        total, losses_BS = linear_cross_entropy(
            hidden_BSD, model.lm_head.weight, batch["labels"], chunk_elements=self.loss_chunk_elements
        )
        counts_B = (batch["labels"] != IGNORE_INDEX).sum(dim=1)
        return LossOutput(total, losses_BS.sum(dim=1), counts_B.to(losses_BS.dtype), {})

    def units_per_sample(self) -> tuple[int, str]:
        return self.sequence_length, "tokens"

    def flops_per_sample(self) -> float:
        return count_flops(self.model_config, self.sequence_length).train_per_token * self.sequence_length

    def validation_metrics(self, name: str, mean_loss: float) -> dict[str, float]:
        """Perplexity, and bits per byte: nats per label -> bits, over the bytes of text that a label stands for."""
        bytes_per_label = self._valid_sources[name].bytes_per_label
        return {
            "perplexity": math.exp(min(mean_loss, 700.0)),
            "bits_per_byte": mean_loss / math.log(2) / bytes_per_label,
        }

    def identity(self) -> dict[str, Any]:
        config = self.model_config.to_diff_dict()
        config.pop("transformers_version", None)
        return {"model": config, "tokenizer": tokenizer_hash(self.tokenizer), "sequence_length": self.sequence_length}

    def replay_description(self) -> dict[str, Any]:
        return {
            "shards": [str(Path(directory).resolve()) for directory in self.train],
            "sequence_length": self.sequence_length,
            "document_mask": self.document_mask,
        }

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        rows = {
            "attention": f"{model.config._attn_implementation} (asked for: {self.attention})",  # type: ignore[union-attr]
            "tokenizer": tokenizer_hash(self.tokenizer)[:16],
        }
        if self.document_mask:
            rows["document mask"] = check_document_isolation(model, batch)
        return rows

    def evaluation_context(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        disable_progress_bar()  # it would tear the training's own bar apart
        model.save_pretrained(directory, state_dict=dict(state_dict))  # type: ignore[operator]
        self.tokenizer.save_pretrained(directory / "tokenizer")


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
