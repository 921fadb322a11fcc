"""A Task is the one thing in which language, vision, recognition and every distillation method differ.

The trainer asks it for a model, a source of samples per split, a loss, an export. It never mentions a modality.
A user's own Task is any subclass, named by its import path in the YAML (`task: {class_path: my.module.MyTask}`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from data_pipeline.loader import Batch
from data_pipeline.source import Source
from pretrain.compilation import blocks_of, compile_blocks
from pretrain.losses.loss_layout import LossLayout
from pretrain.tasks.facts import UNDECLARED, Suggestion


class LossOutput(NamedTuple):
    """What one forward pass of a task returns; a NamedTuple, because ZeRO-3's hooks look through tuples.

    The trainer divides sums of `total` by sums of `weight` over all micro-batches and ranks of a global batch, so
    the gradient is the exact mean whatever the micro-batch and the world size.
    """

    total: Tensor
    """Scalar, differentiable: summed loss of the micro-batch."""
    per_sample: Tensor
    """[B], detached: summed loss of each sample."""
    per_sample_weight: Tensor
    """[B], detached: what each sample's sum is to be divided by (labelled tokens for a language model)."""
    metrics: dict[str, Tensor]
    """Further scalars to log, means over the micro-batch; averaged over those of a step, by weight in validation."""


class Task(ABC):
    """Everything the trainer needs to know about what it trains. Construction is cheap and allocates nothing."""

    compiled_on_accelerators: ClassVar[bool] = False
    """Whether `engine.compile: auto` compiles on an accelerator, where it is not measured: batches are of one shape."""
    default_optimizer: ClassVar[Literal["adamw", "muon"]] = "adamw"
    """What `optimizer.name: auto` takes."""
    mean_metrics: ClassVar[tuple[str, ...]] = ()
    """Names of `validation_metrics` whose mean over the held-out sources is reported too."""
    kind: ClassVar[str] = "model"
    """What is trained, in a word or two, for reports."""
    measurement: ClassVar[str | None] = UNDECLARED
    """`module:function`, called by grids as `function(checkpoint, grid)` on every trained cell, whose numbers join the
    cell's; None where validation says everything (docs/add_a_measurement.md)."""
    suggestions: ClassVar[tuple[Suggestion, ...] | None] = None
    """What the report offers to try next."""
    more_data: ClassVar[str] = ""
    """The command that makes more of what is trained on, for the report."""
    loss_chunk_elements: int | LossLayout | None = None
    """Logits that exist at one time, of a task with a `loss_vocabulary`; None takes what suits the device."""
    text_samples: ClassVar[bool] = False
    """Whether runs come with generated text (samples.json)."""

    @abstractmethod
    def build_model(self, seed: int) -> nn.Module:
        """A freshly initialised model in float32, the same for the same seed."""

    @abstractmethod
    def training_sources(self) -> tuple[Sequence[Source], Sequence[float] | None]:
        """The sources of the training mixture and their weights (None: in proportion to their sizes)."""

    @abstractmethod
    def validation_sources(self) -> Mapping[str, Source]:
        """Held-out sources by name; may be empty."""

    @abstractmethod
    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        """Samples of one micro-batch into tensors; in training the loader adds `sample_ids` and `step`."""

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """What the batch's summed loss is divided by; known before the forward pass."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        """Forward pass and loss of one micro-batch."""

    @abstractmethod
    def units_per_sample(self) -> tuple[int, str]:
        """How many units one sample counts for throughput and budgets, and their name: (512, "tokens")."""

    def residual_width(self) -> int | None:
        """Channels of the residual stream, for the rule of the learning rate; None where there is no such number."""
        return None

    @abstractmethod
    def flops_per_sample(self) -> float:
        """Floating-point operations of one sample in training, forward and backward, embedding look-ups not counted."""

    @abstractmethod
    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        """Writes weights and everything needed to load the model without this run (configuration, tokenizer)."""

    def plan_for(self, device: str) -> None:  # noqa: B027
        """Says, before a plan asks for `blank_model`, on which type of device the run will be: "cpu" or "cuda"."""

    def blank_model(self) -> nn.Module:
        """The model of a run that is only planned: its shape counts, its values do not.

        Called with torch's meta device as the default one. The default serves tasks that build without their data.
        """
        return self.build_model(0)

    def skeleton(self) -> nn.Module | None:
        """The modules and shapes of the run's model, its parameters and buffers on torch's meta device.

        For ranks that are given their values by another. None, the default, where a model is not so large that every
        rank could not build it.
        """
        return None

    def example_batch(self, size: int) -> Batch:
        """A micro-batch as large as those of training, for a plan. The default takes the first samples there are."""
        source = self.training_sources()[0][0]
        return self.collate([source.sample(index % len(source)) for index in range(size)])

    def load_model(self, directory: Path) -> nn.Module:
        """The model that `save_pretrained` wrote. The default serves tasks whose weights are one model.safetensors."""
        model = self.build_model(0)
        load_model(model, directory / "model.safetensors")
        return model

    def prepare_model(self, model: nn.Module, activation_checkpointing: bool, compile_model: bool) -> None:
        """Switches recomputation and compilation on, in place, before the engine is built.

        The default recomputes transformers models, and compiles the `blocks` of any.
        """
        if activation_checkpointing:
            enable = getattr(model, "gradient_checkpointing_enable", None)
            if enable is None:
                raise ValueError(f"{type(model).__name__} has no gradient_checkpointing_enable()")
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if compile_model:
            compile_blocks(self.blocks(model))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The parts of the model that `engine.compile` compiles. The default finds what it repeats."""
        return blocks_of(model)

    def undecayed_parameters(self, model: nn.Module) -> set[str]:
        """Names of matrices that weight decay must spare; vectors are always spared."""
        spared = getattr(model, "no_weight_decay", None)
        return set(spared()) if spared is not None else set()

    def learning_rate_factors(self, model: nn.Module) -> dict[str, float]:
        """Factor of the learning rate by the prefix of parameters' names (`{"decoder.": 19.0}`); elsewhere it is 1."""
        return {}

    def validation_metrics(self, name: str, mean_loss: float) -> dict[str, float]:
        """What a mean validation loss of source `name` means in further units (bits per byte, say)."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What, besides data and seed, must not change between a checkpoint and its continuation."""
        return {}

    def replay_description(self) -> dict[str, Any]:
        """What `python -m data_pipeline replay` needs to open the training data again."""
        return {}

    def loss_vocabulary(self) -> int | None:
        """Classes of a loss that is computed in chunks of `loss_chunk_elements` logits (pretrain/losses/), for plans;
        None where the loss has no such chunks."""
        return None

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        """Rows for the step-0 audit table: claims checked on a real batch. Raises if a check fails."""
        return {}

    def evaluation_context(self) -> dict[str, Any]:
        """Objects besides the model that evaluation hooks need, such as the tokenizer."""
        return {}


class TaskModule(nn.Module):
    """Model and task as one module, so that the engine's forward pass is the task's loss."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> LossOutput:
        return self.task.loss(self.model, batch)


def seeded_build(build: Any, seed: int) -> nn.Module:
    """Calls `build()` under its own random state, leaving the caller's untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
