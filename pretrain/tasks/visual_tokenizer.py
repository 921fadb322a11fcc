"""Training a visual tokenizer: an autoencoder with a VQ or FSQ bottleneck (docs/methods/delvm.md: visual tokenizers).

    images -> ImageSource -> {image_B3SS} -> encoder, codes, decoder -> |x - y| + (x - y)^2 + perceptual + commitment

Nothing adversarial. Every checkpoint is a visual tokenizer: `load_visual_tokenizer` opens it, and a run by its newest.

Shapes: B batch, S pixels of a side, N ids of an image, V codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from arch.vq.configuration import VisualTokenizerConfig, load_visual_config
from arch.vq.perceptual import PerceptualDistance
from arch.vq.vq_model import VqModel
from common.config_file import ModelConfigError
from data_pipeline.images.source import ImageSource
from data_pipeline.loader import Batch
from data_pipeline.source import Source
from pretrain.errors import ConfigurationError
from pretrain.tasks.base import LossOutput, Task, seeded_build
from tokenizer.visual.load import load_visual_tokenizer
from tokenizer.visual.network import NetworkTokenizer


@dataclass(frozen=True)
class ReconstructionLoss:
    """Weights of the terms; pixels are in [0, 1]."""

    l1: float = 1.0
    """Mean absolute difference of pixels."""
    l2: float = 1.0
    """Mean squared difference of pixels."""
    perceptual: float = 0.1
    """Distance of a frozen network's features; only with `perceptual_weights`."""
    commitment: float = 0.25
    """Mean squared distance of latents from their codes (vq only)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name}: must be at least 0, got {getattr(self, field.name)}")
        if self.l1 + self.l2 == 0:
            raise ValueError("l1, l2: one of them must be above 0, or nothing asks for the image")


class VisualTokenizerTask(Task):
    """A visual tokenizer on images.

    Args:
        model: YAML of VisualTokenizerConfig fields (configs/vq/models/*.yaml).
        train: images: files, folders of them, .parquet files (see tokenizer/inputs/image_stores.py).
        valid: held-out images by name.
        loss_weights: of the terms of the loss.
        perceptual_weights: file with the weights of torchvision's mobilenet_v2; None: no perceptual term.
        copies: randomly cropped and flipped copies of each training image; 0: no augmentation.
        column: column of .parquet files.
        initial_images: images whose latents start a vq codebook by k-means, evenly spaced over the training images.
        model_overrides: fields of the model's shape to change.
        initial_weights: a visual tokenizer, or a run of one, of the same shape to start from.
    """

    kind = "visual tokenizer"
    measurement = None  # its validation says everything
    suggestions = ()

    def __init__(
        self,
        model: str,
        train: list[str] | None = None,
        valid: dict[str, str] | None = None,
        loss_weights: ReconstructionLoss | None = None,
        perceptual_weights: str | None = None,
        copies: int = 0,
        column: str = "image",
        initial_images: int = 256,
        model_overrides: dict[str, Any] | None = None,
        initial_weights: str | None = None,
    ) -> None:
        if not train:
            raise ConfigurationError("task.train is empty: name images to train on")
        for name, value, least in (("copies", copies, 0), ("initial_images", initial_images, 1)):
            if value < least:
                raise ConfigurationError(f"task.{name} is {value}; it must be at least {least}")
        self.train, self.valid, self.column, self.copies = train, valid or {}, column, copies
        self.loss_weights = loss_weights or ReconstructionLoss()
        self.perceptual_weights, self.initial_images = perceptual_weights, initial_images
        self.initial_weights = initial_weights
        try:
            self.model_config: VisualTokenizerConfig = load_visual_config(model, model_overrides)
        except (ModelConfigError, FileNotFoundError) as error:
            raise ConfigurationError(f"task.model or task.model_overrides: {error}") from None

    @cached_property
    def _train_source(self) -> ImageSource:
        return ImageSource(self.train, self.model_config.image_size, self.copies, column=self.column)

    def training_sources(self) -> tuple[Sequence[Source], Sequence[float] | None]:
        return [self._train_source], None

    @cached_property
    def _valid_sources(self) -> dict[str, ImageSource]:
        size = self.model_config.image_size
        return {name: ImageSource(path, size, column=self.column) for name, path in self.valid.items()}

    def validation_sources(self) -> Mapping[str, Source]:
        return self._valid_sources

    @cached_property
    def _perceptual(self) -> PerceptualDistance | None:
        """Frozen, and no part of the model: neither the optimizer nor a checkpoint sees it."""
        if self.perceptual_weights is None:
            return None
        try:
            return PerceptualDistance(self.perceptual_weights)
        except ModelConfigError as error:
            raise ConfigurationError(f"task.perceptual_weights: {error}") from None

    def build_model(self, seed: int) -> nn.Module:
        if self.initial_weights is not None:
            return self._initial_network(self.initial_weights)

        def build() -> nn.Module:
            model = VqModel(self.model_config)
            if self.model_config.quantizer == "vq":
                self._initialise_codebook(model)
            return model

        return seeded_build(build, seed)

    def blank_model(self) -> nn.Module:
        """Its codebook is not started from images."""
        return seeded_build(lambda: VqModel(self.model_config), 0)

    def example_batch(self, size: int) -> Batch:
        side = self.model_config.image_size
        return self.collate([{"image": np.zeros((3, side, side), dtype=np.uint8)}] * size)

    def _initialise_codebook(self, model: VqModel) -> None:
        """The same on every rank: the images depend on their number alone, and the draws on the seed."""
        count = min(self.initial_images, len(self._train_source))
        numbers = np.linspace(0, len(self._train_source) - 1, count).round().astype(int).tolist()
        images_B3SS = torch.from_numpy(np.stack([self._train_source.sample(number)["image"] for number in numbers]))
        try:
            model.initialise_codebook(images_B3SS.float() / 255)
        except ValueError as error:
            raise ConfigurationError(f"task.initial_images: {error}; use more images or fewer codes") from None

    def _initial_network(self, path: str) -> nn.Module:
        try:
            tokenizer = load_visual_tokenizer(path)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigurationError(f"task.initial_weights: {error}") from None
        network = getattr(tokenizer, "network", None)
        if not isinstance(network, VqModel) or network.config != self.model_config:
            raise ConfigurationError(f"task.initial_weights: {path} is not a tokenizer of the shape of task.model")
        return network.train().requires_grad_(True)

    def load_model(self, directory: Path) -> nn.Module:
        model = VqModel(self.model_config)
        load_model(model, directory / "model.safetensors")
        return model

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Both networks; the codebook between them branches on what it holds."""
        return [model.encoder, model.decoder]  # type: ignore[list-item]

    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        return {"image": torch.from_numpy(np.stack([sample["image"] for sample in samples]))}

    def weight(self, batch: Batch) -> float:
        return float(len(batch["image"]))

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        images_B3SS = batch["image"].float() / 255
        output = model(images_B3SS.to(next(model.parameters()).dtype))
        difference_B3SS = output.images_B3SS.float() - images_B3SS
        terms_B = {
            "l1": difference_B3SS.abs().mean(dim=(1, 2, 3)),
            "l2": difference_B3SS.square().mean(dim=(1, 2, 3)),
            "commitment": output.commitment_B.float(),
        }
        if self._perceptual is not None:
            terms_B["perceptual"] = self._perceptual.to(images_B3SS.device)(output.images_B3SS.float(), images_B3SS)
        losses_B = torch.stack([getattr(self.loss_weights, name) * term_B for name, term_B in terms_B.items()]).sum(0)
        metrics = {name: term_B.detach().mean() for name, term_B in terms_B.items()}
        metrics |= _code_usage(output.ids_BN, self.model_config.vocab_size)
        return LossOutput(losses_B.sum(), losses_B.detach(), torch.ones_like(losses_B), metrics)

    def units_per_sample(self) -> tuple[int, str]:
        return 1, "images"

    def residual_width(self) -> int | None:
        return self.model_config.width

    def flops_per_sample(self) -> float:
        """Forward and backward of the model; the frozen perceptual network is not counted."""
        return 3 * self.model_config.forward_flops()

    def identity(self) -> dict[str, Any]:
        model = {**asdict(self.model_config), "levels": list(self.model_config.levels)}
        found: dict[str, Any] = {"model": model, "loss_weights": asdict(self.loss_weights), "perceptual": None}
        if self._perceptual is not None:
            assert self.perceptual_weights is not None
            found["perceptual"] = hashlib.sha256(Path(self.perceptual_weights).read_bytes()).hexdigest()
        return found

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        c = self.model_config
        return {
            "tokenizer": f"{c.quantizer}, {c.vocab_size} codes, {c.grid} x {c.grid} of {c.image_size} x {c.image_size}",
            "perceptual term": "off" if self.perceptual_weights is None else f"mobilenet_v2, {self.perceptual_weights}",
        }

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        network = VqModel(self.model_config)
        network.load_state_dict({name: tensor.detach().cpu().float() for name, tensor in state_dict.items()})
        NetworkTokenizer(network).save(directory)


def _code_usage(ids_BN: Tensor, codes: int) -> dict[str, Tensor]:
    """Share of the codes that occur, and exp of the entropy of their shares; nobody waits for either."""
    ids_M = ids_BN.flatten()
    shares_V = torch.zeros(codes, device=ids_M.device).index_add_(0, ids_M, torch.ones_like(ids_M, dtype=torch.float32))
    shares_V /= ids_M.numel()
    entropy = -torch.xlogy(shares_V, shares_V).sum()
    return {"codes_used": (shares_V > 0).float().mean(), "code_perplexity": entropy.exp()}
