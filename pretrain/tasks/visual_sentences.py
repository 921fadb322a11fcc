"""Visual sentences: next-token prediction over the codes of images (docs/methods/delvm.md).

    shards -> SentenceSource -> {input_ids, labels, position_ids}_BT -> factorised embedding -> decoder -> chunked loss

The vocabulary is the codes and nothing else: no token begins, separates or ends anything, so generation makes exactly
as many ids as it is asked for. The model trains with its input embedding factorised through the frozen codebook and
leaves folded, as a plain transformers model with the visual tokenizer beside it.

Shapes: B sentences, n ids of an image, T = images_per_sentence * n - 1 labels, V codes, C features of a code, D width.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arch.delvm.factorised_embedding import FactorisedEmbedding, factorise, fold_state_dict
from arch.delvm.initialisation import initialise
from arch.pangu_pi import PanguPiForCausalLM
from data_pipeline.loader import Batch
from data_pipeline.shards.sentence_source import SentenceSource
from pretrain.attention_checks import check_causality
from pretrain.errors import ConfigurationError
from pretrain.losses.visual_sentences import sentence_means
from pretrain.tasks.base import seeded_build
from pretrain.tasks.decoder import SPECIAL_TOKENS, DecoderTask
from pretrain.tasks.facts import Suggestion
from tokenizer.visual.base import VisualTokenizer, VisualTokenizerError
from tokenizer.visual.load import load_visual_tokenizer


class VisualSentenceTask(DecoderTask):
    """Next-token prediction on sentences of images.

    Args:
        shared, decoder: what every decoder task takes (`DecoderTask`). The model's vocabulary is the tokenizer's codes,
            its head is not tied; shards are those of `python -m data_pipeline prepare --pairs...`, one task each;
            initial weights must be factorised if this is; a teacher must know the same visual tokenizer.
        images_per_sentence: images of a sentence; 8 are four pairs.
        passes: times that the records of `train` are dealt into sentences, each time anew.
        sentence_seed: names the deals.
        factorised: train the input embedding as codebook x projection; otherwise as a table of its own.
        initialisation: delvm (as meant), delvm_released (as released), or model (the shape's own).
    """

    accuracy = True
    kind = "visual language model"
    more_data = (
        "python -m data_pipeline prepare --input MORE_PHOTOGRAPHS/ --tokenizer {checkpoint}/tokenizer "
        "--pairs.task edges --output MORE"
    )
    suggestions = (
        Suggestion(
            "Train on photographs of your own.",
            "python -m pretrain vision --images MY_PHOTOGRAPHS/ --output runs/my-vision",
        ),
        Suggestion(
            "See what the visual tokenizer alone loses: no answer can be sharper than its reconstructions.",
            "python -m tokenizer visual inspect --tokenizer {checkpoint}/tokenizer --images MY_PHOTOGRAPHS/ "
            "--output {run}/eval",
        ),
        Suggestion(
            "Show the tasks with other pairs: sets of your own, one to three examples before the question.",
            "python -m eval vision --model {run} --sets MY_SETS.yaml --output {run}/eval",
        ),
    )

    def __init__(
        self,
        *shared: Any,
        images_per_sentence: int = 8,
        passes: int = 1,
        sentence_seed: int = 0,
        factorised: bool = True,
        initialisation: Literal["delvm", "delvm_released", "model"] = "delvm",
        **decoder: Any,
    ) -> None:
        super().__init__(*shared, **decoder)
        self.images_per_sentence, self.passes, self.sentence_seed = images_per_sentence, passes, sentence_seed
        self.factorised, self.initialisation = factorised, initialisation
        if initialisation != "model" and self.model_config.init_scheme != "constant":
            raise ConfigurationError(
                f"task.initialisation {initialisation} draws every matrix its own way, the model's init_scheme "
                f"{self.model_config.init_scheme!r} would be lost; set task.initialisation model, or that to constant"
            )
        if factorised and self.model_config.tie_word_embeddings:
            raise ConfigurationError(
                "task.model ties its head to the embedding, which is factorised and has no table to share; set "
                "task.model_overrides.tie_word_embeddings false, or task.factorised false"
            )

    @cached_property
    def tokenizer(self) -> VisualTokenizer:
        """The visual tokenizer that the training shards were written with."""
        try:
            return load_visual_tokenizer(self.tokenizer_directory)
        except (FileNotFoundError, VisualTokenizerError) as error:
            raise ConfigurationError(f"task.train: {error}; is this a directory of image shards?") from None

    def hash_of_tokenizer(self, directory: Path) -> str:
        try:
            return load_visual_tokenizer(directory).hash
        except VisualTokenizerError as error:
            raise ConfigurationError(str(error)) from None

    @cached_property
    def tokenizer_hash(self) -> str:
        return self.tokenizer.hash

    def save_tokenizer(self, directory: Path) -> None:
        shutil.copytree(self.tokenizer_directory, directory)

    def special_tokens(self) -> dict[str, int | None]:
        return dict.fromkeys(SPECIAL_TOKENS)

    def open_source(self, directory: str, training: bool) -> SentenceSource:
        if self.tokenizer.vocab_size != self.model_config.vocab_size:
            raise ConfigurationError(
                f"{self.tokenizer_directory}: has {self.tokenizer.vocab_size} codes, the model a vocabulary of "
                f"{self.model_config.vocab_size}; they must be equal, set task.model_overrides.vocab_size"
            )
        passes = self.passes if training else 1
        return SentenceSource(directory, self.images_per_sentence, passes, self.sentence_seed)

    def units_per_sample(self) -> tuple[int, str]:
        return self.images_per_sentence * self.tokenizer.tokens_per_image - 1, "tokens"

    def new_model(self) -> nn.Module:
        model = PanguPiForCausalLM(self.model_config)
        if self.factorised:
            factorise(model, self._codebook())
        return model if self.initialisation == "model" else initialise(model, self.initialisation)

    def skeleton(self) -> nn.Module | None:
        return None if self.factorised or self.initialisation != "model" else super().skeleton()

    def initial_model(self, directory: str) -> nn.Module:
        model = super().initial_model(directory)
        if self.factorised:
            table_VD = model.get_input_embeddings().weight  # type: ignore[operator]
            seeded_build(lambda: factorise(model, self._codebook()), 0)  # type: ignore[arg-type]
            try:
                model.get_input_embeddings().unfold_(table_VD)  # type: ignore[operator]
            except ValueError as error:
                raise ConfigurationError(f"task.initial_weights {directory}: {error}") from None
        return model

    def _codebook(self) -> Tensor:
        return torch.from_numpy(self.tokenizer.codebook())

    def metrics(self, tokens: Mapping[str, Tensor], count: Tensor) -> dict[str, Tensor]:
        """Adds the cross-entropy of target images and of the last target."""
        means = sentence_means(tokens["loss"], self.tokenizer.tokens_per_image)
        return super().metrics(tokens, count) | {f"loss_{name}": mean for name, mean in means.items()}

    def validation_metrics(self, name: str, mean_loss: float) -> dict[str, float]:
        """Perplexity: exp of the mean over all tokens, however they were batched."""
        return {"perplexity": math.exp(min(mean_loss, 700.0))}

    def flops_per_sample(self) -> float:
        """Adds the projection of the codebook's features, which a table does not have."""
        features = self.tokenizer.codebook().shape[1] if self.factorised else 0
        return (
            super().flops_per_sample() + 3 * 2 * features * self.model_config.hidden_size * self.units_per_sample()[0]
        )

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"factorised": self.factorised}

    def replay_description(self) -> dict[str, Any]:
        return super().replay_description() | {
            "kind": "sentences",
            "images_per_sentence": self.images_per_sentence,
            "passes": self.passes,
            "sentence_seed": self.sentence_seed,
        }

    def audit(self, model: nn.Module, batch: Batch) -> dict[str, str]:
        tokenizer, embedding = self.tokenizer, "a table of its own"
        if isinstance(factors := model.get_input_embeddings(), FactorisedEmbedding):  # type: ignore[operator]
            codes, features = factors.codebook.shape
            embedding = f"frozen codebook {codes} x {features}, projected to {factors.projection.out_features}"
        return super().audit(model, batch) | {
            "codes": f"{tokenizer.vocab_size}, no other token",
            "images": f"{tokenizer.image_size} pixels, {tokenizer.grid} x {tokenizer.grid} tokens",
            "sentence": f"{self.images_per_sentence} images = {self.units_per_sample()[0] + 1} tokens",
            "input embedding": embedding,
            "causality": check_causality(model, batch, tokenizer.tokens_per_image),
        }

    def evaluation_context(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}

    def save_pretrained(self, model: nn.Module, state_dict: Mapping[str, Tensor], directory: Path) -> None:
        """The model with its embedding folded, in transformers format, and a copy of the visual tokenizer."""
        folded = fold_state_dict(state_dict)
        with torch.device("meta"):  # only a configuration and names: the weights are those of `folded`
            shell = PanguPiForCausalLM(model.config).to(folded["lm_head.weight"].dtype)  # type: ignore[arg-type]
        super().save_pretrained(shell, folded, directory)
