"""PARSeq as pure torch: a ViT encoder (timm), the two-stream decoder, a linear head."""

from __future__ import annotations

from typing import Any

from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from arch.parseq.character_decoder import CharacterDecoder
from arch.parseq.configuration import ParseqConfig
from arch.parseq.stem import ConvolutionStem


class Parseq(CharacterDecoder):
    """Word images in, one distribution over characters per position out.

    Source: Bautista and Atienza, "Scene Text Recognition with Permuted Autoregressive Sequence Models" (ECCV 2022).
    """

    config: ParseqConfig

    def __init__(self, config: ParseqConfig) -> None:
        encoder = VisionTransformer(
            img_size=(config.image_height, config.image_width),
            patch_size=(config.patch_height, config.patch_width),  # type: ignore[arg-type]
            num_classes=0,
            global_pool="",
            class_token=False,
            embed_dim=config.width,
            depth=config.encoder_layers,
            num_heads=config.encoder_heads,
            mlp_ratio=config.encoder_mlp_ratio,
            embed_layer=ConvolutionStem if config.stem == "convolution" else PatchEmbed,
        )
        super().__init__(config, encoder)
        if config.initialisation == "narrow":
            self._initialise_narrow()

    def _initialise_narrow(self) -> None:
        """Draws the blocks' matrices and the positions again, so large that a narrow model passes them on."""
        for part in (self.encoder.blocks, self.decoder):
            for parameter in part.parameters():
                if parameter.ndim == 2:
                    nn.init.trunc_normal_(parameter, std=parameter.shape[1] ** -0.5)
        for positions in (self.encoder.pos_embed, self.pos_queries):
            nn.init.trunc_normal_(positions, std=0.2)

    def forward(self, images_B3HW: Tensor, context_BL: Tensor, ordering_KP: Tensor) -> Tensor:
        """Logits [B, K, L, C] of every position under every ordering, from the true characters.

        Args:
            images_B3HW: from `config.normalise`.
            context_BL, ordering_KP: see `CharacterDecoder.forward`.
        """
        return super().forward(self.encoder(images_B3HW), context_BL, ordering_KP)

    def get_input_embeddings(self) -> nn.Module:
        """What reads the pixels: the patches' projection, or of a stem of convolutions the first one."""
        embed: Any = self.encoder.patch_embed
        return embed.layers[0] if self.config.stem == "convolution" else embed

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that weight decay spares."""
        return super().no_weight_decay() | {"encoder.pos_embed"}

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recomputes the encoder's blocks in backward."""
        self.encoder.set_grad_checkpointing(True)
