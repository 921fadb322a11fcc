"""A frozen teacher: a causal language model from disk that never trains and that no engine knows.

It is no part of the student's module: `student.train()` does not reach it, and its parameters are in no optimizer and
in no checkpoint. Its weights are read when they are first asked for; whether it fits is asked before (`check`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arch.pangu_pi import PanguPiConfig
from arch.pangu_pi.load_config import load_model_config
from arch.pangu_pi.load_weights import WeightsError, load_causal_lm
from common.config_file import ModelConfigError
from common.find_model import find_tokenizer, resolve_model
from common.token_shards import sha256_of
from data_pipeline.loader import Batch
from pretrain.attention import Choice, built_with, decide, last_hidden
from pretrain.errors import ConfigurationError


class Teacher:
    """The model at `path`, opened when it is first needed.

    Args:
        path: a run (its newest checkpoint is taken), a checkpoint, an export, or a transformers directory of our types.
        attention: attention implementation of transformers, or auto.
    """

    def __init__(self, path: str, attention: str = "auto") -> None:
        self.path, self.attention = path, attention
        self._model: nn.Module | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads data and needs no teacher.
        return self.__dict__ | {"_model": None}

    @cached_property
    def directory(self) -> Path:
        """Where the model lies.

        Raises:
            ConfigurationError: there is none.
        """
        try:
            return resolve_model(self.path)
        except (FileNotFoundError, ModelConfigError) as error:
            raise ConfigurationError(f"task.teacher: {error}") from None

    @cached_property
    def config(self) -> PanguPiConfig:
        """Its shape.

        Raises:
            ConfigurationError: there is no model at the path, or one of another type.
        """
        try:
            return load_model_config(self.directory)
        except (FileNotFoundError, ModelConfigError) as error:
            raise ConfigurationError(f"task.teacher: {error}") from None

    def check(self, vocab_size: int, tokenizer_hash: str, hash_of: Callable[[Path], str]) -> None:
        """Refuses a teacher that does not speak the student's language, without reading its weights.

        Args:
            vocab_size: of the student.
            tokenizer_hash: of the tokenizer of the student's data.
            hash_of: the hash of the tokenizer in a directory.

        Raises:
            ConfigurationError: there is no teacher, or its vocabulary or its tokenizer is another one.
        """
        if self.config.vocab_size != vocab_size:
            raise ConfigurationError(
                f"task.teacher {self.path}: its vocabulary has {self.config.vocab_size} entries, the student's "
                f"{vocab_size}; token-wise distillation needs the same vocabulary"
            )
        directory = find_tokenizer(self.directory)
        if directory is None:
            raise ConfigurationError(
                f"task.teacher {self.path}: no tokenizer lies beside it, so its tokens may mean something else; "
                "copy that directory there, as tokenizer/"
            )
        if (found := hash_of(directory)) != tokenizer_hash:
            raise ConfigurationError(
                f"task.teacher {self.path}: its tokenizer is {found[:12]}, that of the training data "
                f"{tokenizer_hash[:12]}; train a teacher on shards of the same tokenizer"
            )

    def identity(self) -> dict[str, str]:
        """Names the model by content: checksums of its configuration and weights."""
        path = self.directory
        files = [path] if path.is_file() else [path / "config.json", *sorted(path.glob("*.safetensors"))]
        if len(files) == 1 and path.is_dir():
            raise ConfigurationError(f"task.teacher {self.path}: no weights (*.safetensors) in {path}")
        return {file.name: sha256_of(file) for file in files}

    def model(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """The frozen model, in evaluation mode; read at the first call, moved at the first call for a device.

        Raises:
            WeightsError: the weights cannot be read, or are not those of its configuration.
        """
        if self._model is None:
            try:
                model = load_causal_lm(self.directory, attn_implementation=built_with(self.attention))
            except OSError as error:
                raise WeightsError(f"task.teacher {self.path}: {error}") from None
            self._model = model.requires_grad_(False).eval()
        head = self._model.lm_head.weight  # type: ignore[union-attr]
        if (head.device, head.dtype) != (torch.device(device), dtype):
            self._model.to(device=device, dtype=dtype)
        return self._model

    def decide(self, like: Tensor, packed: bool) -> Choice:
        """The attention that it has on the device and in the type of `like`; `packed`: rows hold several documents."""
        return decide(self.model(like.device, like.dtype), self.attention, like.device, packed)

    @torch.no_grad()
    def hidden(self, batch: Batch, like: Tensor, packed: bool = True) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, S, E] of a batch and the head [V, E], on the device and in the type of `like`."""
        self.decide(like, packed)
        model = self.model(like.device, like.dtype)
        return last_hidden(model, batch), model.lm_head.weight  # type: ignore[union-attr]


__all__ = ["Teacher"]
