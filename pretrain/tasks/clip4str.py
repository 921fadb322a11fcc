"""CLIP4STR on word images: two branches, one loss (docs/methods/ocr.md: CLIP4STR).

    words -> image encoder once -> visual decoder under K orderings -> K captions -> cross decoder under the same ones

The loss of an ordering is the sum of both branches' cross-entropies, divided by the characters counted once.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from arch.clip4str.configuration import Clip4StrConfig, load_clip4str_config
from arch.clip4str.model import Clip4Str, load_clip_weights
from arch.pangu_pi.load_weights import WeightsError
from arch.parseq.recogniser_config import RecogniserConfig
from data_pipeline.loader import Batch
from pretrain.errors import ConfigurationError
from pretrain.tasks.base import LossOutput
from pretrain.tasks.word_recognition import WordRecognitionTask, read_recogniser
from tokenizer.characters import CharacterTokenizer, CharsetError, read_charset
from tokenizer.clip_captions import BPE_FILE, ByteEncoding, CaptionError, CaptionTokenizer, ClipEncoding

CONFIG_FILE = "clip4str.json"


class Clip4StrTask(WordRecognitionTask):
    """CLIP4STR on word images.

    Args:
        model: YAML of Clip4StrConfig fields (configs/clip4str/models/*.yaml).
        caption_charset: what captions are brought to: 36, 62, 94, or a text file with the characters.
        bpe: CLIP's merges, bpe_simple_vocab_16e6.txt.gz; None: captions are bytes, for a text encoder from scratch.
        clip: directory of a transformers CLIPModel to start from; None: from scratch.
        decoder_lr_factor: what the learning rate of both decoders is multiplied by.
        words: what WordRecognitionTask takes.
    """

    config_file: ClassVar[str] = CONFIG_FILE
    default_optimizer = "adamw"

    def __init__(
        self,
        model: str,
        caption_charset: str = "36",
        bpe: str | None = None,
        clip: str | None = None,
        decoder_lr_factor: float = 19.0,
        **words: Any,
    ) -> None:
        if bpe is not None and not Path(bpe).is_file():
            raise ConfigurationError(f"task.bpe: {bpe}: no such file; openai/CLIP publishes it as {BPE_FILE}")
        if clip is not None and bpe is None:
            raise ConfigurationError("task.clip has learnt CLIP's own tokens: name their file with task.bpe")
        if not decoder_lr_factor > 0:
            raise ConfigurationError(f"task.decoder_lr_factor is {decoder_lr_factor}; it must be greater than 0")
        try:
            self.caption_charset = read_charset(caption_charset)
        except CharsetError as error:
            raise ConfigurationError(f"task.caption_charset: {error}") from None
        self.bpe, self.clip, self.decoder_lr_factor = bpe, clip, decoder_lr_factor
        super().__init__(model, **words)

    def _read_config(self, path: str, sizes: dict[str, Any]) -> RecogniserConfig:
        tokens = ByteEncoding.size if self.bpe is None else ClipEncoding.size
        return load_clip4str_config(path, sizes | {"text_tokens": tokens})

    @cached_property
    def _captions(self) -> CaptionTokenizer:
        assert isinstance(self.model_config, Clip4StrConfig)
        try:
            return CaptionTokenizer(self.tokenizer, self.caption_charset, self.bpe, self.model_config.caption_length)
        except CaptionError as error:
            raise ConfigurationError(f"task.bpe: {error}") from None

    def _new_model(self) -> nn.Module:
        assert isinstance(self.model_config, Clip4StrConfig)
        model = Clip4Str(self.model_config, self._captions)
        if self.clip is not None:
            try:
                load_clip_weights(model, self.clip)
            except WeightsError as error:
                raise ConfigurationError(f"task.clip: {error}") from None
        return model

    def learning_rate_factors(self, model: nn.Module) -> dict[str, float]:
        return {"visual_decoder.": self.decoder_lr_factor, "cross_decoder.": self.decoder_lr_factor}

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        branches, target_BKL = self._predict(model, batch)
        losses = {name: self._losses(logits, target_BKL) for name, logits in branches._asdict().items()}
        count = (target_BKL != self.tokenizer.pad).sum()
        metrics = {f"loss_{name}": losses_BKL.detach().sum() / count for name, losses_BKL in losses.items()}
        return self._output(torch.stack(list(losses.values())).sum(dim=0), target_BKL, metrics)

    def identity(self) -> dict[str, Any]:
        captions = {"charset": self.caption_charset, "tokens": self._captions.encoding.fingerprint}
        return super().identity() | {"captions": captions}

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        frozen = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if not p.requires_grad)
        tokens = "bytes" if self.bpe is None else "CLIP's tokens"
        return super().audit(model, batch) | {
            "CLIP": (self.clip or "from scratch") + f", {frozen:,} parameters frozen",
            "captions": f"{len(self.caption_charset)} characters as {tokens}",
        }

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        super().save_pretrained(model, state_dict, directory)
        if self.bpe is not None:
            shutil.copyfile(self.bpe, directory / Path(self.bpe).name)

    def _description(self) -> dict[str, Any]:
        bpe = None if self.bpe is None else Path(self.bpe).name
        return super()._description() | {"caption_charset": self.caption_charset, "bpe": bpe}


def load_clip4str(directory: Path) -> tuple[Clip4Str, CharacterTokenizer]:
    """The model and the charset that `Clip4StrTask.save_pretrained` wrote, in evaluation mode.

    Raises:
        ConfigurationError: files are missing or do not fit together.
    """

    def build(content: dict[str, Any], characters: CharacterTokenizer) -> Clip4Str:
        config = Clip4StrConfig(**content["model"])
        bpe = None if content["bpe"] is None else directory / Path(content["bpe"]).name
        return Clip4Str(config, CaptionTokenizer(characters, content["caption_charset"], bpe, config.caption_length))

    return read_recogniser(directory, CONFIG_FILE, build)
