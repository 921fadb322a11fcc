"""A small convolutional autoencoder with a grid of codes in its middle.

    image [3, S, S] -> PixelUnshuffle -> conv, residual blocks, halvings -> latents [D, G, G] -> codes
          [3, S, S] <- PixelShuffle   <- conv, residual blocks, doublings <- vectors of the codes

The bottleneck is `vector_quantize_pytorch`: a learnt codebook that follows moving averages of the latents it is chosen
for (VQ-VAE, arXiv 1711.00937, appendix A), or finite scalar quantisation (arXiv 2309.15505). Gradients pass it straight
through: what arrives at the vectors arrives, unchanged, at the latents.

Shapes: B images, S pixels of a side, G codes of a side, N = G * G ids in raster order, V codes, D latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import FSQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans

from arch.vq.configuration import VisualTokenizerConfig


class Reconstructed(NamedTuple):
    """What a forward pass returns."""

    images_B3SS: Tensor
    """About [0, 1]; not clamped."""
    ids_BN: Tensor
    """int64."""
    commitment_B: Tensor
    """Mean squared distance of an image's latents from the vectors of their codes; 0 for fsq."""


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BWHW: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x_BWHW)))
        return x_BWHW + self.conv2(F.silu(self.norm2(hidden)))


class VqModel(nn.Module):
    """The network of a visual tokenizer, for training and use.

    With several ranks a vq codebook is updated from the micro-batches of all of them, so R ranks of micro-batches b
    update it like one rank of micro-batches R b. Which latents replace dead codes is drawn differently by another
    number of ranks; it is the same on all ranks of one run.
    """

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        c, w = config, config.width
        blocks = lambda: [ResidualBlock(w, c.groups) for _ in range(c.blocks)]  # noqa: E731
        ending = lambda: [nn.GroupNorm(c.groups, w), nn.SiLU()]  # noqa: E731
        down: list[nn.Module] = [nn.PixelUnshuffle(c.stem), nn.Conv2d(3 * c.stem**2, w, 3, padding=1), *blocks()]
        up: list[nn.Module] = [nn.Conv2d(c.latent_dim, w, 3, padding=1), *blocks()]
        for _ in range(c.halvings):
            down += [nn.Conv2d(w, w, 3, stride=2, padding=1), *blocks()]
            up += [nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(w, w, 3, padding=1), *blocks()]
        self.encoder = nn.Sequential(*down, *ending(), nn.Conv2d(w, c.latent_dim, 1))
        self.decoder = nn.Sequential(*up, *ending(), nn.Conv2d(w, 3 * c.stem**2, 3, padding=1), nn.PixelShuffle(c.stem))
        self.quantizer: nn.Module = _build_vq(c) if c.quantizer == "vq" else FSQ(list(c.levels))

    def forward(self, images_B3SS: Tensor) -> Reconstructed:
        """Images through the bottleneck and back; in training mode a vq codebook moves.

        Args:
            images_B3SS: float in [0, 1].
        """
        latents_BDGG = self.latents(images_B3SS)
        vectors_BDGG, ids_BGG = self.quantizer(latents_BDGG)[:2]
        if self.config.quantizer == "vq":
            commitment_B = (latents_BDGG - vectors_BDGG.detach()).square().mean(dim=(1, 2, 3))
        else:
            commitment_B = latents_BDGG.new_zeros(len(latents_BDGG))
        images = (self.decoder(vectors_BDGG) + 1) / 2
        return Reconstructed(images, ids_BGG.flatten(1).long(), commitment_B)

    def get_input_embeddings(self) -> nn.Module:
        """What reads the pixels: the encoder's first convolution."""
        return self.encoder[1]

    def get_output_embeddings(self) -> nn.Module:
        """What writes the pixels: the decoder's last convolution."""
        return self.decoder[-2]

    def latents(self, images_B3SS: Tensor) -> Tensor:
        """What the bottleneck quantises: [B, D, G, G]."""
        return self.encoder(2 * images_B3SS - 1)

    @torch.no_grad()
    def encode(self, images_B3SS: Tensor) -> Tensor:
        """Images in [0, 1] -> ids int64 [B, N]. For evaluation mode: a vq codebook would move in training mode."""
        return self.quantizer(self.latents(images_B3SS))[1].flatten(1).long()

    @torch.no_grad()
    def decode(self, ids_BN: Tensor) -> Tensor:
        """ids -> images in [0, 1], [B, 3, S, S]."""
        ids_BGG = ids_BN.unflatten(1, (self.config.grid, self.config.grid))
        if self.config.quantizer == "vq":
            vectors_BDGG = self.quantizer.get_codes_from_indices(ids_BGG)
        else:
            vectors_BDGG = self.quantizer.indices_to_codes(ids_BGG)
        dtype = next(self.decoder.parameters()).dtype  # a codebook stays in float32
        return ((self.decoder(vectors_BDGG.to(dtype)) + 1) / 2).clamp(0, 1)

    def codebook(self) -> Tensor:
        """The vectors of the codes, [V, D]."""
        return self.quantizer.codebook if self.config.quantizer == "vq" else self.quantizer.implicit_codebook

    @torch.no_grad()
    def initialise_codebook(self, images_B3SS: Tensor) -> None:
        """Sets a vq codebook to k-means centres of the latents of some images; a no-op for fsq.

        Draws from torch's generator. Every rank that calls it with the same images and seed gets the same codebook.

        Raises:
            ValueError: fewer latents than codes.
        """
        if self.config.quantizer != "vq":
            return
        latents_1MD = self.latents(images_B3SS).flatten(2).transpose(1, 2).reshape(1, -1, self.config.code_dim)
        if latents_1MD.shape[1] < self.config.codes:
            raise ValueError(
                f"{len(images_B3SS)} images have {latents_1MD.shape[1]} latents, fewer than {self.config.codes} codes"
            )
        centres_1VD, counts_1V = kmeans(latents_1MD, self.config.codes)
        book = self.quantizer._codebook
        # As after the library's own k-means: averages weighted by how often each code was chosen.
        book.cluster_size.copy_(counts_1V)
        book.embed_avg.copy_(centres_1VD * counts_1V[..., None])
        book.update_ema()


class Float32Quantizer(VectorQuantize):
    """A codebook that stays in float32 when the module changes its type, as an engine that trains in bf16 does with it.

    In bf16 a moving average of decay 0.99 would not move: its steps are smaller than a rounding.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Quantizer:
        book = self._codebook
        kept = {name: buffer for name, buffer in book.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = getattr(book, name)
            if moved.dtype != buffer.dtype:
                setattr(book, name, buffer.to(moved.device))
        return self


def _build_vq(config: VisualTokenizerConfig) -> VectorQuantize:
    quantizer = Float32Quantizer(
        config.code_dim,
        config.codes,
        decay=config.decay,
        threshold_ema_dead_code=config.dead_code_threshold,
        commitment_weight=0.0,  # `forward` returns it per image
        accept_image_fmap=True,
        rotation_trick=False,  # plain straight-through
        sync_codebook=dist.is_initialized() and dist.get_world_size() > 1,
    )
    # The library asks the device in every pass whether its own k-means is still to be run; it never is.
    quantizer._codebook.init_embed_ = _nothing_to_initialise
    return quantizer


def _nothing_to_initialise(*_: Any, **__: Any) -> None:
    """`VqModel.initialise_codebook` does that."""
