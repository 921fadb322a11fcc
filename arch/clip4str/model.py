"""CLIP4STR as a torch module: transformers' CLIP and two of PARSeq's decoders.

Shapes: B batch, K orderings, M image tokens, S caption tokens, E width of the shared space, L inputs of the decoders,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from arch.clip4str.configuration import Clip4StrConfig
from arch.pangu_pi.load_weights import WeightsError
from arch.parseq.character_decoder import CharacterDecoder

Caption = Callable[[np.ndarray], np.ndarray]
"""int64 [..., L] ids of characters, [E] among them, to int64 [..., S] ids of the text encoder."""

SHAPE_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("vocab_size", "max_position_embeddings", "image_size", "patch_size"),
)
"""What the towers of two CLIP configurations must share."""


class BranchLogits(NamedTuple):
    """What both branches predict, each [B, K, L, C]."""

    visual: Tensor
    cross: Tensor


class Clip4Str(nn.Module):
    """Word images in, one distribution over characters per position and branch out.

    Source: Zhao et al., "CLIP4STR: A Simple Baseline for Scene Text Recognition with Pre-trained Vision-Language Model"
    (arXiv 2305.14014); details of the released code in docs/methods/ocr.md: CLIP4STR.

    Args:
        config: sizes.
        caption: turns what the visual branch has read into ids of the text encoder.
    """

    def __init__(self, config: Clip4StrConfig, caption: Caption) -> None:
        super().__init__()
        self.config, self.caption = config, caption
        self.clip = CLIPModel(config.clip_config())
        self.clip.logit_scale = nn.Parameter(self.clip.logit_scale.detach()[None])  # DeepSpeed cannot send scalars
        self.visual_decoder = CharacterDecoder(config)
        self.cross_decoder = CharacterDecoder(config)
        for parameter in self._frozen():
            parameter.requires_grad = False

    def _frozen(self) -> Iterator[nn.Parameter]:
        """What is never trained: the temperature of CLIP's loss, embeddings and first blocks of the text encoder."""
        yield self.clip.logit_scale
        text, blocks = self.clip.text_model, self.config.frozen_text_layers
        if blocks:
            yield from text.embeddings.parameters()
            yield from text.encoder.layers[:blocks].parameters()

    def forward(self, images_B3HW: Tensor, context_BL: Tensor, ordering_KP: Tensor) -> BranchLogits:
        """Logits of every position under every ordering, from the true characters: what training needs.

        The caption of an ordering is what the visual branch reads under it, at the positions that are trained, so that
        it does not depend on longer labels in the batch (in the released code it does). No gradient passes from the
        cross branch to the image encoder, nor through the caption.

        Args:
            images_B3HW: from `config.normalise`.
            context_BL, ordering_KP: see `CharacterDecoder.forward`.
        """
        image_BME = self.encode_image(images_B3HW)
        visual_BKLC = self.visual_decoder(image_BME, context_BL, ordering_KP)
        untrained_BKL = self._untrained(context_BL, visual_BKLC.shape[1])
        reading_BKL = visual_BKLC.detach().argmax(dim=-1).masked_fill(untrained_BKL, self.config.eos)
        memory_BKNE = self.cross_memory(image_BME[:, None], reading_BKL)
        return BranchLogits(visual_BKLC, self.cross_decoder(memory_BKNE, context_BL, ordering_KP))

    def _untrained(self, context_BL: Tensor, orderings: int) -> Tensor:
        """Outputs behind the label's [E], and from the third ordering on that of [E] itself: bool [B, K, L]."""
        behind_BL = (context_BL == self.config.pad) | (context_BL == self.config.eos)
        from_end_BL = torch.cat([behind_BL[:, 1:], torch.ones_like(behind_BL[:, :1])], dim=1)
        return torch.stack([behind_BL, behind_BL, *[from_end_BL] * (orderings - 2)], dim=1)[:, :orderings]

    def encode_image(self, images_B3HW: Tensor) -> Tensor:
        """Every token of the image encoder, normalised and projected: [B, M, E]."""
        vision = self.clip.vision_model
        hidden_BMD = vision(pixel_values=images_B3HW).last_hidden_state
        return self.clip.visual_projection(vision.post_layernorm(hidden_BMD))

    def cross_memory(self, image_B1ME: Tensor, reading_BKL: Tensor) -> Tensor:
        """What the cross decoder looks at: the image, and as a caption what has been read in it, [B, K, M + S, E].

        The host waits here for the device, once: byte-pair encoding is a program of the host.
        """
        text_BKSE = self.encode_text(self.caption(reading_BKL.cpu().numpy()))
        image_BKME = image_B1ME.detach().expand(-1, text_BKSE.shape[1], -1, -1)
        return torch.cat([image_BKME, text_BKSE], dim=2)

    def encode_text(self, ids: np.ndarray) -> Tensor:
        """Every token of the text encoder, normalised and projected: [..., S, E]. Equal captions are encoded once."""
        distinct, place = np.unique(ids.reshape(-1, ids.shape[-1]), axis=0, return_inverse=True)
        device = self.clip.text_projection.weight.device
        ids_NS, place_BK = (
            torch.from_numpy(array).to(device, non_blocking=True) for array in (distinct, place.reshape(ids.shape[:-1]))
        )
        text_NSE = self.clip.text_projection(self.clip.text_model(input_ids=ids_NS).last_hidden_state)
        return text_NSE[place_BK]

    def get_input_embeddings(self) -> nn.Module:
        """What reads the pixels."""
        return self.clip.vision_model.embeddings.patch_embedding

    def get_output_embeddings(self) -> nn.Module:
        """The heads of both branches."""
        return nn.ModuleList([self.visual_decoder.head, self.cross_decoder.head])

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that weight decay spares."""
        return {
            f"{decoder}.{name}"
            for decoder in ("visual_decoder", "cross_decoder")
            for name in getattr(self, decoder).no_weight_decay()
        }

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recomputes the encoders' blocks in backward."""
        self.clip.gradient_checkpointing_enable(gradient_checkpointing_kwargs)


def load_clip_weights(model: Clip4Str, directory: str | Path) -> None:
    """Takes CLIP's weights from a transformers directory of a CLIPModel (safetensors), in place.

    Raises:
        WeightsError: there is none, it has other sizes, or weights are missing; names the fields.
    """
    if not (Path(directory) / "config.json").is_file():
        raise WeightsError(f"{directory}: no CLIP model (there is no config.json)")
    ours, place = model.config.clip_config(), {"local_files_only": True}
    try:
        theirs = CLIPConfig.from_pretrained(str(directory), **place)
        for where in (None, "text_config", "vision_config"):
            have, want = (getattr(config, where) if where else config for config in (theirs, ours))
            for field in SHAPE_FIELDS if where else ("projection_dim",):
                if getattr(have, field, None) != getattr(want, field, None):
                    raise WeightsError(
                        f"{directory}: {where or 'config'}.{field} is {getattr(have, field, None)}, the model's is "
                        f"{getattr(want, field, None)}"
                    )
        donor, report = CLIPModel.from_pretrained(
            str(directory), config=ours, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **place
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{directory}: no CLIP model ({str(error).splitlines()[0]})") from None
    if report["missing_keys"]:
        raise WeightsError(f"{directory}: weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
    weights = donor.state_dict()
    model.clip.load_state_dict(weights | {"logit_scale": weights["logit_scale"][None]})
