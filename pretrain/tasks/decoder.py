"""What every next-token task shares: a decoder, a mixture of token shards, the chunked loss, and perhaps a teacher.

    Source -> {input_ids, labels, position_ids}_BS -> decoder -> head and loss, chunk by chunk
                                                   -> frozen teacher -> its head, in the same chunks

A subclass says what a sample is, which tokenizer made its ids, and how the model leaves.

Shapes: B batch, S sequence, D width, E width of the teacher, V vocabulary.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.logging import disable_progress_bar

from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.accounting import count_flops, count_parameters
from arch.pangu_pi.load_config import load_model_config
from arch.pangu_pi.load_weights import load_causal_lm
from arch.surgery.compatibility import SAME, SERIES, SHORTCUT
from common.config_file import ModelConfigError
from common.find_model import resolve_model
from data_pipeline.loader import Batch, collate_tokens
from data_pipeline.source import Source
from pretrain.attention import AUTO, Choice, built_with, decide, last_hidden
from pretrain.attention_checks import check_rotary
from pretrain.errors import ConfigurationError
from pretrain.losses.chunked_cross_entropy import IGNORE_INDEX, Criterion, CrossEntropy, linear_loss
from pretrain.losses.loss_layout import describe_layout
from pretrain.losses.token_distillation import Distillation, DistillationConfig
from pretrain.tasks.base import LossOutput, Task, seeded_build
from pretrain.tasks.teacher import Teacher

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES_OF_SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "tie_word_embeddings", "series_terms", "shortcut_count"),
)
MASKLESS = "sdpa_without_mask"


class DecoderTask(Task):
    """Next-token prediction with a PanGu-pi or LLaMA-shaped decoder, alone or beside a teacher.

    Args:
        model: shape of the model: a YAML of PanguPiConfig fields (configs/*/models/*.yaml)
            or a transformers directory.
        train: directories of token shards.
        valid: held-out directories of token shards by name, such as {en: ..., zh: ...}.
        weights: mixture weights of `train`; None mixes in proportion to size.
        attention: auto, or an attention implementation of transformers (sdpa, flash_attention_2, flex_attention,
            eager). auto takes on CUDA what needs no S x S mask (see pretrain/attention.py), and sdpa elsewhere.
        model_overrides: fields of the model's shape to change, such as {series_terms: 1}.
        initial_weights: directory of a model, or of a run, to start from instead of random values.
        loss_chunk_elements: logits that exist at one time in the loss; None takes what suits the device
            (pretrain/losses/loss_layout.py).
        teacher: a run, checkpoint or transformers directory whose predictions are learned besides the data's (see
            pretrain/tasks/teacher.py).
        distillation: how teacher and data are weighed; by default both with weight 1, at temperature 1.
        z_loss: coefficient of the squared log of the softmax's denominator in training (PaLM, arXiv 2204.02311, section
            5, has 1e-4); every loss that is reported is without it.
    """

    measurement = None  # its validation says everything
    accuracy = False
    """Whether to log how often the label is the most likely token."""
    document_mask = False
    """Whether documents of a packed row are hidden from each other."""
    attention: str = AUTO
    """What was asked for."""
    z_loss = 0.0
    """Coefficient of the z-loss."""
    _planned_for = "cuda"
    compiled_on_accelerators = True

    def __init__(
        self,
        model: str,
        train: list[str],
        valid: dict[str, str] | None = None,
        weights: list[float] | None = None,
        attention: str = AUTO,
        model_overrides: dict[str, Any] | None = None,
        initial_weights: str | None = None,
        loss_chunk_elements: int | None = None,
        teacher: str | None = None,
        distillation: DistillationConfig | None = None,
        z_loss: float = 0.0,
    ) -> None:
        if not train:
            raise ConfigurationError("task.train is empty: name at least one directory of token shards")
        if distillation is not None and teacher is None:
            raise ConfigurationError("task.distillation is set without task.teacher; name one or leave both out")
        self.train, self.valid, self.weights = train, valid or {}, weights
        if loss_chunk_elements is not None and loss_chunk_elements < 1:
            raise ConfigurationError(
                f"task.loss_chunk_elements is {loss_chunk_elements}; it must be at least 1, or null"
            )
        self.attention, self.initial_weights = attention, initial_weights
        self.loss_chunk_elements = loss_chunk_elements
        """What `linear_loss` takes; a plan sets the layout of the device that it is for."""
        if not 0 <= z_loss < math.inf:
            raise ConfigurationError(f"task.z_loss is {z_loss}; it must be at least 0, such as 1e-4")
        self.z_loss = z_loss
        self.teacher = None if teacher is None else Teacher(teacher, attention)
        self.distillation = distillation or DistillationConfig()
        try:
            self.model_config = load_model_config(model, model_overrides)
        except ModelConfigError as error:
            raise ConfigurationError(f"task.model or task.model_overrides: {error}") from None

    @abstractmethod
    def open_source(self, directory: str, training: bool) -> Any:
        """The samples of one directory of shards; has the shards' `meta`."""

    @abstractmethod
    def hash_of_tokenizer(self, directory: Path) -> str:
        """The hash of the tokenizer in a directory, as `meta.json` has it."""

    @abstractmethod
    def special_tokens(self) -> dict[str, int | None]:
        """The model's SPECIAL_TOKENS."""

    @abstractmethod
    def save_tokenizer(self, directory: Path) -> None:
        """Writes the tokenizer into a new directory."""

    @property
    def tokenizer_directory(self) -> Path:
        """The tokenizer that the training shards were written with."""
        return Path(self.train[0]) / "tokenizer"

    @cached_property
    def tokenizer_hash(self) -> str:
        """Names that tokenizer by content."""
        return self.hash_of_tokenizer(self.tokenizer_directory)

    def _source(self, directory: str, training: bool) -> Any:
        source = self.open_source(directory, training)
        if source.meta.vocab_size > self.model_config.vocab_size:
            raise ConfigurationError(
                f"{directory}: its tokenizer has {source.meta.vocab_size} pieces, the model only "
                f"{self.model_config.vocab_size} embeddings; set task.model_overrides.vocab_size"
            )
        return source

    @cached_property
    def _train_sources(self) -> list[Any]:
        return [self._source(directory, training=True) for directory in self.train]

    @cached_property
    def _valid_sources(self) -> dict[str, Any]:
        return {name: self._source(directory, training=False) for name, directory in self.valid.items()}

    def training_sources(self) -> tuple[Sequence[Source], Sequence[float] | None]:
        sources = self._train_sources
        hashes = {directory: source.meta.tokenizer_hash for directory, source in zip(self.train, sources, strict=True)}
        hashes.update({self.valid[name]: source.meta.tokenizer_hash for name, source in self._valid_sources.items()})
        if len(set(hashes.values())) > 1:
            listing = ", ".join(f"{directory}: {value[:12]}" for directory, value in hashes.items())
            raise ConfigurationError(f"shards of different tokenizers cannot be mixed ({listing})")
        if self.teacher is not None:
            self.teacher.check(self.model_config.vocab_size, self.tokenizer_hash, self.hash_of_tokenizer)
        return sources, self.weights

    def validation_sources(self) -> Mapping[str, Source]:
        return self._valid_sources

    def build_model(self, seed: int) -> nn.Module:
        if self.initial_weights is not None:
            return self.initial_model(self.initial_weights)
        self._complete_config()
        try:
            return seeded_build(self.new_model, seed)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"task.attention {self.attention!r} or the model's shape: {error}") from error

    def _complete_config(self) -> None:
        config = self.model_config
        for name, value in self.special_tokens().items():
            setattr(config, name, value)
        config.max_position_embeddings = max(config.max_position_embeddings, self.units_per_sample()[0])
        config._attn_implementation = built_with(self.attention)

    def skeleton(self) -> nn.Module | None:
        if type(self).build_model is not DecoderTask.build_model:
            return None  # a task that builds in a way of its own, whose shapes are not known here
        if self.initial_weights is None:
            self._complete_config()
            with torch.device("meta"):
                return self.new_model()
        path = resolve_model(self.initial_weights)
        if not (Path(path) / "config.json").is_file():
            return None  # a GGUF file, whose shape is known when it has been read
        config = load_model_config(path)
        self._check_shape(self.initial_weights, config)
        config._attn_implementation = built_with(self.attention)
        with torch.device("meta"):
            return PanguPiForCausalLM(config)

    def plan_for(self, device: str) -> None:
        self._planned_for = device

    def blank_model(self) -> nn.Module:
        """Needs no shards, no weights, no attention package: flash and flex attention are fused and have no mask."""
        asked = self.attention
        if asked == AUTO and self._planned_for == "cpu" and self.model_config.attention_dropout:
            asked = "sdpa"
        masked = asked == "sdpa" and self.document_mask
        if not masked and asked != "eager":
            AttentionInterface.register(MASKLESS, sdpa_attention_forward)  # known to have no mask, as it has none
        self.model_config._attn_implementation = asked if masked or asked == "eager" else MASKLESS
        return seeded_build(self.new_model, 0)

    def example_batch(self, size: int) -> Batch:
        length = self.units_per_sample()[0]
        zeros_S = np.zeros(length, dtype=np.int64)
        return self.collate([{"input_ids": zeros_S, "labels": zeros_S, "position_ids": zeros_S}] * size)

    def new_model(self) -> nn.Module:
        """A model of the task's shape, drawn from torch's global generator."""
        return PanguPiForCausalLM(self.model_config)

    def initial_model(self, directory: str) -> nn.Module:
        """The model at `directory` (of a run: its newest checkpoint), which must have the task's shape."""
        model = load_causal_lm(resolve_model(directory), attn_implementation=built_with(self.attention))
        self._check_shape(directory, model.config)
        return model

    def _check_shape(self, directory: str, found: Any) -> None:
        """Refuses another shape, and another function of the same shape: the run would train what it does not say."""
        wanted = self.model_config
        series = SERIES if wanted.series_terms > 1 else ()
        shortcut = ("shortcut_reduction", *SHORTCUT) if wanted.shortcut_count else ()
        for field in (*SIZES_OF_SHAPE, *SAME, "rope_parameters", *series, *shortcut):
            have, want = getattr(found, field), getattr(wanted, field)
            if have != want:
                raise ConfigurationError(
                    f"task.initial_weights {directory}: {field} is {have}, the run's model has {want}; take a model "
                    "of the same shape, or set task.model_overrides to its shape"
                )

    def load_model(self, directory: Path) -> nn.Module:
        disable_progress_bar()  # it would tear the caller's own bar apart
        return load_causal_lm(directory, attn_implementation=built_with(self.attention))

    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        return collate_tokens(samples)

    def decide_attention(self, model: nn.Module, batch: Batch) -> Choice:
        """The attention of the model for batches like this one; the first call decides where `attention` is auto."""
        return decide(model, self.attention, batch["input_ids"].device, self.document_mask)

    def weight(self, batch: Batch) -> float:
        return float((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        """Cross-entropy against the data; in training, with a teacher, the weighted sum of both losses.

        The z-loss is in the gradient alone: not in the value of the total, not in the losses of samples.
        """
        self.decide_attention(model, batch)
        hidden_BSD = last_hidden(model, batch)
        z_loss = self.z_loss if model.training else 0.0
        softcap = self.model_config.final_logit_softcapping
        truth = CrossEntropy(batch["labels"], accuracy=self.accuracy, z_loss=z_loss, softcap=softcap)
        criterion: Criterion = truth
        if self.teacher is not None and model.training:
            teacher_hidden_BSE, teacher_weight_VE = self.teacher.hidden(batch, hidden_BSD, self.document_mask)
            taught = self.teacher.config.final_logit_softcapping
            criterion = Distillation(truth, teacher_hidden_BSE, teacher_weight_VE, self.distillation, taught)
        total, tokens = linear_loss(hidden_BSD, model.lm_head.weight, criterion, self.loss_chunk_elements)
        counts_B, objective_BS = (batch["labels"] != IGNORE_INDEX).sum(dim=1), tokens["objective"]
        if z_loss:
            objective_BS, total = objective_BS - tokens["z_loss"], total - tokens["z_loss"].sum()
        return LossOutput(
            total, objective_BS.sum(dim=1), counts_B.to(objective_BS.dtype), self.metrics(tokens, counts_B.sum())
        )

    def metrics(self, tokens: Mapping[str, Tensor], count: Tensor) -> dict[str, Tensor]:
        """What to log of a micro-batch, as means over its `count` labels.

        Args:
            tokens: [B, S] each: `objective`, `loss` against the data, perhaps `correct` and `z_loss`; with a teacher
                `divergence`.
            count: number of labels.
        """
        names = {"correct": "accuracy", "z_loss": "z_loss"}
        if "divergence" in tokens:
            names |= {"loss": "loss_gt", "divergence": "loss_kd"}
        return {names[name]: values_BS.sum() / count for name, values_BS in tokens.items() if name in names}

    def residual_width(self) -> int | None:
        return int(self.model_config.hidden_size)

    def flops_per_sample(self) -> float:
        """Three forward passes of the student and one of the teacher."""
        length = self.units_per_sample()[0]
        flops = count_flops(self.model_config, length).train_per_token
        if self.teacher is not None:
            flops += count_flops(self.teacher.config, length).forward_per_token
        return flops * length

    def identity(self) -> dict[str, Any]:
        config = self.model_config.to_diff_dict()
        config.pop("transformers_version", None)
        identity = {"model": config, "tokenizer": self.tokenizer_hash, "sequence_length": self.units_per_sample()[0]}
        if self.teacher is not None:
            identity["teacher"] = {"files": self.teacher.identity(), **asdict(self.distillation)}
        return identity

    def loss_vocabulary(self) -> int:
        return self.model_config.vocab_size

    def replay_description(self) -> dict[str, Any]:
        return {
            "shards": [str(Path(directory).resolve()) for directory in self.train],
            "contents": [source.meta.content for source in self._train_sources],
        }

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        choice = self.decide_attention(model, batch)
        rows = {
            "attention": f"{choice.name} ({choice.reason})",
            "rotary": check_rotary(model),
            "tokenizer": self.tokenizer_hash[:16],
            "loss": describe_layout(
                model.lm_head.weight, self.model_config.vocab_size, batch["labels"].numel(), self.loss_chunk_elements
            ),  # type: ignore[union-attr]
        }
        if self.teacher is not None:
            # In the type that the student's hidden states will have.
            like = torch.empty(0, dtype=model.lm_head.weight.dtype, device=batch["input_ids"].device)  # type: ignore[union-attr, arg-type]
            rows["teacher"] = self._audit_teacher(batch, like)
            rows |= {f"teacher's {name}": text for name, text in self.audit_teacher(batch, like).items()}
        return rows

    def audit_teacher(self, batch: Batch, like: Tensor) -> dict[str, str]:
        """Rows for the audit table: what must hold for the teacher as for the student, in the type of `like`."""
        assert self.teacher is not None
        choice = self.teacher.decide(like, self.document_mask)
        teacher = self.teacher.model(like.device, like.dtype)
        return {"attention": f"{choice.name} ({choice.reason})", "rotary": check_rotary(teacher)}

    def _audit_teacher(self, batch: Batch, like: Tensor) -> str:
        """Reads the teacher's weights, which may fail, and says what it knows of a real batch."""
        assert self.teacher is not None
        hidden_BSE, weight_VE = self.teacher.hidden(batch, like, self.document_mask)
        criterion = CrossEntropy(batch["labels"], softcap=self.teacher.config.final_logit_softcapping)
        total, _ = linear_loss(hidden_BSE, weight_VE, criterion, self.loss_chunk_elements)
        mean = float(total) / max(self.weight(batch), 1.0)
        kl = "KL(student || teacher)" if self.distillation.reverse else "KL(teacher || student)"
        return (
            f"{self.teacher.path}: {count_parameters(self.teacher.config).total:,} parameters, frozen, loss {mean:.3f} "
            f"on the first batch; {self.distillation.weight_gt:g} x cross-entropy + {self.distillation.weight_kd:g} x "
            f"{kl} at temperature {self.distillation.temperature:g}"
        )

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        disable_progress_bar()  # it would tear the training's own bar apart
        model.save_pretrained(directory, state_dict=dict(state_dict))  # type: ignore[operator]
        self.save_tokenizer(directory / "tokenizer")
