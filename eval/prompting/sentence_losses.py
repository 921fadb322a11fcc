"""Loss and accuracy on visual sentences, over all tokens and over the targets (docs/methods/delvm.md: evaluation).

    image           0 input   1 target  2 input   3 target  ...        n tokens each; a pair is two images
    label t         is token t + 1, so it lies in image (t + 1) // n
    target_loss               x                   x                    labels in odd images
    loss_by_pairs             [0]                 [1]                  the target that follows 0, 1, ... whole pairs

Everything is a mean over tokens, whatever the batches; perplexity is exp of it. Costs one forward pass per sentence.
Shapes: N sentences, T tokens of a sentence, V codes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from pretrain.losses.visual_sentences import label_images, position_losses

IMAGES_PER_PAIR = 2


class SentenceLosses(NamedTuple):
    """What a model says of every token but the first."""

    losses_NL: np.ndarray
    """Cross-entropy in nats: float64 [N, T - 1]."""
    correct_NL: np.ndarray
    """Whether the likeliest code is the right one: bool [N, T - 1]."""


def sentence_losses(model: Any, sentences_NT: np.ndarray, batch_size: int) -> SentenceLosses:
    """Losses of whole sentences.

    Args:
        model: a causal LM, in evaluation mode.
        sentences_NT: codes, int64 [N, T].
        batch_size: sentences of one forward pass.
    """
    losses, correct = [], []
    for first in range(0, len(sentences_NT), batch_size):
        ids_BT = torch.from_numpy(sentences_NT[first : first + batch_size]).to(model.device)
        positions_BL = torch.arange(ids_BT.shape[1] - 1, device=model.device).expand(len(ids_BT), -1)
        batch = {"input_ids": ids_BT[:, :-1], "labels": ids_BT[:, 1:].contiguous(), "position_ids": positions_BL}
        tokens = position_losses(model, batch)
        losses.append(tokens["loss"].double().cpu().numpy())
        correct.append(tokens["correct"].bool().cpu().numpy())
    return SentenceLosses(np.concatenate(losses), np.concatenate(correct))


def summarise(found: SentenceLosses, tokens_per_image: int) -> dict[str, Any]:
    """Token means: ``loss``, ``accuracy``, ``perplexity`` over all labels; ``target_*`` over target images;
    ``last_target_loss``; and ``loss_by_pairs``, the loss of a target after 0, 1, ... pairs."""
    losses_NL, correct_NL = found
    image_L = label_images(losses_NL.shape[1], tokens_per_image).numpy()
    target_L = image_L % IMAGES_PER_PAIR == 1
    by_pairs = [float(losses_NL[:, image_L == image].mean()) for image in np.unique(image_L[target_L])]
    loss = float(losses_NL.mean())
    return {
        "loss": loss,
        "accuracy": float(correct_NL.mean()),
        "perplexity": math.exp(min(loss, 700.0)),
        "target_loss": float(losses_NL[:, target_L].mean()),
        "target_accuracy": float(correct_NL[:, target_L].mean()),
        "last_target_loss": by_pairs[-1],
        "loss_by_pairs": by_pairs,
        "sentences": len(losses_NL),
    }


def unigram_losses(sentences_NT: np.ndarray, counts_V: np.ndarray) -> SentenceLosses:
    """What a model would score that knows how frequent each code is and nothing else (one added to every count)."""
    chances_V = (counts_V + 1.0) / (counts_V.sum() + len(counts_V))
    labels_NL = sentences_NT[:, 1:]
    return SentenceLosses(-np.log(chances_V[labels_NL]), labels_NL == chances_V.argmax())
