"""Scene-text recognition by permutation language modelling: PARSeq on word images (docs/methods/ocr.md: loss).

    words -> WordSource -> {image_B3HW, ids_BP} -> encoder once -> K orderings -> cross-entropy of every character

Shapes: B batch, K orderings, P = T + 2 ids of a label ([B], T characters, [E]), L = T + 1 positions, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from arch.parseq.configuration import ParseqConfig, load_parseq_config
from arch.parseq.model import Parseq
from arch.parseq.orderings import sample_orderings
from arch.parseq.recogniser_config import RecogniserConfig
from common.config_file import ModelConfigError
from common.find_model import folder_with
from data_pipeline.loader import Batch
from data_pipeline.source import Source
from data_pipeline.words.replay import describe_words
from data_pipeline.words.source import WordSource
from data_pipeline.words.synthetic import SynthConfig, SynthWords
from pretrain.errors import ConfigurationError
from pretrain.tasks.base import LossOutput, Task, seeded_build
from pretrain.tasks.facts import Suggestion
from pretrain.transfers import on_device
from tokenizer.characters import CharacterTokenizer, CharsetError, read_charset

CONFIG_FILE = "parseq.json"
Model = TypeVar("Model", bound=nn.Module)


class WordRecognitionTask(Task):
    """PARSeq on word images.

    Args:
        model: YAML of ParseqConfig fields (configs/parseq/models/*.yaml).
        train: word stores: LMDB or label folders, Parquet files (see data_pipeline/words/stores.py).
        valid: held-out stores by name.
        synthetic: words rendered while training, a further source after those of `train`.
        weights: mixture weights of the sources; None mixes in proportion to size.
        charset: 36, 62, 94, or a text file with the characters.
        orderings: K, permutations per step, left to right and its reverse among them; 1 trains left to right only.
        orderings_seed: of the permutations; every rank draws the same ones.
        copies: augmented copies of each word of `train` (a pass over the data is that many passes); 0: no augmentation.
        max_dropped: share of a store's labels that may be dropped before it is refused.
        max_altered: share of a store's labels that may lose characters outside the charset before it is refused.
        model_overrides: fields of the model's shape to change.
        initial_weights: a run (its newest checkpoint), or a directory with model.safetensors, to start from.
    """

    config_file: ClassVar[str] = CONFIG_FILE
    """What `save_pretrained` writes beside the weights."""
    default_optimizer: ClassVar[Literal["adamw", "muon"]] = "muon"
    kind = "word recogniser"
    measurement = "eval.grid.measures:measure_words"
    more_data = "python -m data_pipeline synth-words --words MORE.txt --size 200000 --output MORE"
    suggestions = (
        Suggestion(
            "Read word images of your own: a folder with the images and labels.txt (a line `file<TAB>word` for each).",
            "python -m eval ocr --model ours={run} --data MY_WORDS/ --output {run}/eval",
        ),
        Suggestion(
            "Compare with an ONNX recogniser on the same images (pip install rapidocr-onnxruntime).",
            "python -m eval ocr --model ours={run} rapidocr --data {held_out} --output {run}/eval",
        ),
        Suggestion(
            "Photographed words beside the drawn ones, augmented; mixture weights are --task.weights.",
            """{train} --task.train '["MY_TRAINING_WORDS"]' --task.copies 4 --output {run}-photographed""",
        ),
    )

    def __init__(
        self,
        model: str,
        train: list[str] | None = None,
        valid: dict[str, str] | None = None,
        synthetic: SynthConfig | None = None,
        weights: list[float] | None = None,
        charset: str = "94",
        orderings: int = 6,
        orderings_seed: int = 0,
        copies: int = 0,
        max_dropped: float = 0.01,
        max_altered: float = 0.1,
        model_overrides: dict[str, Any] | None = None,
        initial_weights: str | None = None,
    ) -> None:
        if not train and synthetic is None:
            raise ConfigurationError("task.train is empty: name a store of word images, or give task.synthetic")
        if orderings != 1 and (orderings < 2 or orderings % 2):
            raise ConfigurationError(f"task.orderings is {orderings}; it must be 1 or even")
        self.train, self.valid, self.synthetic, self.weights = train or [], valid or {}, synthetic, weights
        self.orderings, self.orderings_seed, self.copies = orderings, orderings_seed, copies
        self.max_dropped, self.max_altered = max_dropped, max_altered
        self.initial_weights = initial_weights
        try:
            self.tokenizer = CharacterTokenizer(read_charset(charset))
            sizes = {**(model_overrides or {}), "characters": len(self.tokenizer.characters)}
            self.model_config = self._read_config(model, sizes)
        except CharsetError as error:
            raise ConfigurationError(f"task.charset: {error}") from None
        except (ModelConfigError, FileNotFoundError) as error:
            raise ConfigurationError(f"task.model or task.model_overrides: {error}") from None

    def _read_config(self, path: str, sizes: dict[str, Any]) -> RecogniserConfig:
        """The model's shape, in a subclass with another model."""
        return load_parseq_config(path, sizes)

    def _new_model(self) -> nn.Module:
        """The model before any weights are loaded."""
        assert isinstance(self.model_config, ParseqConfig)
        return Parseq(self.model_config)

    def _words(self, store: str, copies: int) -> WordSource:
        return WordSource(
            store,
            self.tokenizer,
            self.model_config.image_shape,
            self.model_config.max_length,
            copies,
            max_dropped=self.max_dropped,
            max_altered=self.max_altered,
        )

    @cached_property
    def _train_sources(self) -> list[WordSource | SynthWords]:
        sources: list[WordSource | SynthWords] = [self._words(store, self.copies) for store in self.train]
        if self.synthetic is not None:
            sources.append(
                SynthWords(self.synthetic, self.tokenizer, self.model_config.image_shape, self.model_config.max_length)
            )
        return sources

    @cached_property
    def _valid_sources(self) -> dict[str, WordSource]:
        return {name: self._words(store, 0) for name, store in self.valid.items()}

    def training_sources(self) -> tuple[Sequence[Source], Sequence[float] | None]:
        return self._train_sources, self.weights

    def validation_sources(self) -> Mapping[str, Source]:
        return self._valid_sources

    def build_model(self, seed: int) -> nn.Module:
        model = seeded_build(self._new_model, seed)
        if self.initial_weights is not None:
            path = (
                folder_with(self.initial_weights, "model.safetensors") or Path(self.initial_weights)
            ) / "model.safetensors"
            try:
                model.load_state_dict(load_file(path))
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(f"task.initial_weights: {path}: {error}") from None
        return model

    def blank_model(self) -> nn.Module:
        return seeded_build(self._new_model, 0)

    def example_batch(self, size: int) -> Batch:
        """Words as long as labels may be, the most that a batch can need."""
        word = self.tokenizer.characters[0] * self.model_config.max_length
        ids = self.tokenizer.encode(word, self.model_config.max_length + 2)
        height, width = self.model_config.image_shape
        image = np.zeros((3, height, width), dtype=np.uint8)
        return self.collate([{"image": image, "ids": ids}] * size)

    def collate(self, samples: list[dict[str, np.ndarray]]) -> Batch:
        ids_BP = np.stack([sample["ids"] for sample in samples])
        longest = int((ids_BP != self.tokenizer.pad).sum(axis=1).max())
        images_B3HW = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
        return {"image": images_B3HW, "ids": torch.from_numpy(ids_BP[:, :longest])}

    def weight(self, batch: Batch) -> float:
        """Characters and [E]s that are predicted: [E] in the first two orderings only."""
        ids_BP = batch["ids"]
        characters = int((ids_BP != self.tokenizer.pad).sum()) - 2 * len(ids_BP)
        orderings = self._count(ids_BP)
        return float(orderings * characters + min(2, orderings) * len(ids_BP))

    def _count(self, ids_BP: Tensor) -> int:
        """Orderings of a batch: short words have fewer."""
        return len(self._orderings(ids_BP.shape[1] - 2, 0))

    def _orderings(self, length: int, step: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.orderings_seed << 32) + step + 1)
        return sample_orderings(length, self.orderings, generator, self.model_config.max_length)

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        logits_BKLC, target_BKL = self._predict(model, batch)
        losses_BKL = self._losses(logits_BKLC, target_BKL)
        return self._output(losses_BKL, target_BKL, {})

    def _predict(self, model: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        """What the model returns under the orderings of the step, and what it should predict: [B, K, L]."""
        images_B3HW, ids_BP = self.model_config.normalise(batch["image"]), batch["ids"]
        # A frozen model is always asked for the same orderings, so that validations can be compared.
        step = int(batch["step"]) if model.training and "step" in batch else -1
        drawn = {"ordering_KP": self._orderings(ids_BP.shape[1] - 2, step)}
        ordering_KP = on_device(drawn, ids_BP.device)["ordering_KP"]
        predicted = model(images_B3HW.to(next(model.parameters()).dtype), ids_BP[:, :-1], ordering_KP)
        target_BKL = ids_BP[:, None, 1:].repeat(1, len(ordering_KP), 1)
        target_BKL[:, 2:][target_BKL[:, 2:] == self.tokenizer.eos] = self.tokenizer.pad
        return predicted, target_BKL

    def _losses(self, logits_BKLC: Tensor, target_BKL: Tensor) -> Tensor:
        """Cross-entropy of every character, [B, K, L]; 0 where there is nothing to predict."""
        return F.cross_entropy(
            logits_BKLC.flatten(0, 2).float(),
            target_BKL.flatten(),
            ignore_index=self.tokenizer.pad,
            reduction="none",
        ).view_as(target_BKL)

    def _output(self, losses_BKL: Tensor, target_BKL: Tensor, metrics: dict[str, Tensor]) -> LossOutput:
        counts_B = (target_BKL != self.tokenizer.pad).sum(dim=(1, 2))
        return LossOutput(losses_BKL.sum(), losses_BKL.detach().sum(dim=(1, 2)), counts_B.to(losses_BKL.dtype), metrics)

    def units_per_sample(self) -> tuple[int, str]:
        return 1, "images"

    def residual_width(self) -> int | None:
        return self.model_config.width

    def flops_per_sample(self) -> float:
        typical = min(8, self.model_config.max_length)  # characters of a word in running text
        return self.model_config.training_flops(typical + 1, self.orderings)

    def identity(self) -> dict[str, Any]:
        return {
            "model": asdict(self.model_config),
            "charset": self.tokenizer.characters,
            "orderings": [self.orderings, self.orderings_seed],
        }

    def replay_description(self) -> dict[str, Any]:
        return describe_words(self._train_sources, self.train)

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        words = [self.tokenizer.decode(ids.tolist()) for ids in batch["ids"][:4]]
        return {
            "charset": f"{len(self.tokenizer.characters)} characters",
            "orderings": f"{self.orderings} a step, the same on every rank",
            "first words": ", ".join(map(repr, words)),
        }

    def evaluation_context(self) -> dict[str, Any]:
        return {"characters": self.tokenizer}

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        content = json.dumps(self._description(), indent=1, ensure_ascii=False)
        (directory / self.config_file).write_text(content, encoding="utf-8")

    def _description(self) -> dict[str, Any]:
        """What `load_recogniser` needs to know."""
        return {"model": asdict(self.model_config), "charset": self.tokenizer.characters}


def load_recogniser(directory: Path) -> tuple[Parseq, CharacterTokenizer]:
    """The model and the charset that `WordRecognitionTask.save_pretrained` wrote, in evaluation mode.

    Raises:
        ConfigurationError: files are missing or do not fit together.
    """
    return read_recogniser(directory, CONFIG_FILE, lambda content, _: Parseq(ParseqConfig(**content["model"])))


def read_recogniser(
    directory: Path, config_file: str, build: Callable[[dict[str, Any], CharacterTokenizer], Model]
) -> tuple[Model, CharacterTokenizer]:
    """The same for any model that `build` makes of the contents of `config_file`."""
    try:
        content = json.loads((directory / config_file).read_text(encoding="utf-8"))
        tokenizer = CharacterTokenizer(content["charset"])
        model = build(content, tokenizer)
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"{directory}: not a text recogniser ({type(error).__name__}: {error})") from None
    return model.eval(), tokenizer
