"""Which image of a visual sentence a loss belongs to: targets, the last target (docs/methods/delvm.md: evaluation).

    image     0 (input)   1 (target)   2 (input)   ...   I-1 (last target)         n ids each
    label t   is id t + 1 of the sentence, so it lies in image (t + 1) // n; image 0 has n - 1 labels, the others n

Photographs hold half of the tokens, and what is said of a task is its targets: images with an odd number. The last
target comes after all example pairs, so its loss says what the examples were worth.

Shapes: B sentences, I images, n ids of an image, T = I * n - 1 labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from data_pipeline.loader import Batch
from pretrain.losses.chunked_cross_entropy import CrossEntropy, linear_loss


def label_images(labels: int, tokens_per_image: int) -> Tensor:
    """The image, from 0, in which each of T labels lies: int64 [T].

    Raises:
        ValueError: T + 1 ids are no whole number of images.
    """
    if (labels + 1) % tokens_per_image:
        raise ValueError(f"{labels} labels and the first id are no whole number of images of {tokens_per_image} ids")
    return torch.arange(1, labels + 1) // tokens_per_image


def sentence_masks(labels: int, tokens_per_image: int) -> dict[str, Tensor]:
    """Where labels count, by name: `targets` (odd images) and `last_target` (the last image), bool [T] each."""
    image_T = label_images(labels, tokens_per_image)
    return {"targets": image_T % 2 == 1, "last_target": image_T == image_T[-1]}


def sentence_means(losses_BT: Tensor, tokens_per_image: int) -> dict[str, Tensor]:
    """Means of a number per label, over the labels of each of `sentence_masks` in all sentences: scalars by name."""
    masks = sentence_masks(losses_BT.shape[1], tokens_per_image)
    # Places, found on the host: a mask on a device would be counted there first, and the host would wait for that.
    places = {
        name: mask_T.nonzero().squeeze(1).to(losses_BT.device, non_blocking=True) for name, mask_T in masks.items()
    }
    return {name: losses_BT[:, places_N].mean() for name, places_N in places.items()}


@torch.no_grad()
def position_losses(model: nn.Module, batch: Batch, chunk_elements: int | None = None) -> Mapping[str, Tensor]:
    """What a frozen causal LM makes of every label of a batch (`DecoderTask.collate`), for means of any kind.

    Args:
        model: in evaluation mode, factorised or folded.
        batch: `input_ids`, `labels`, `position_ids`, int64 [B, T] each, on the model's device.
        chunk_elements: logits that may exist at one time; None takes what suits the device.

    Returns:
        `loss`: cross-entropy in nats; `correct`: 1 where the label is the most likely id. Float [B, T] each.
    """
    states_BTD = model.model(  # type: ignore[operator]
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).last_hidden_state
    softcap = model.config.final_logit_softcapping  # type: ignore[union-attr]
    criterion = CrossEntropy(batch["labels"], accuracy=True, softcap=softcap)  # type: ignore[arg-type]
    _, tokens = linear_loss(states_BTD, model.lm_head.weight, criterion, chunk_elements)  # type: ignore[union-attr]
    return tokens


__all__ = ["label_images", "position_losses", "sentence_masks", "sentence_means"]
