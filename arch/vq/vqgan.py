"""The paper's tokenizer: a frozen VQGAN, 256 x 256 pixels to 16 x 16 codes (docs/methods/delvm.md: visual tokenizers).

The network is `diffusers.VQModel`; its weights were published as openMUSE/vqgan-f16-8192-laion under the names of that
project's own class. Both name the same layers in the same geometry:

    openMUSE                                diffusers
    encoder.down.I.block.J                  encoder.down_blocks.I.resnets.J
    encoder.down.I.downsample.conv          encoder.down_blocks.I.downsamplers.0.conv
    decoder.up.I.block.J                    decoder.up_blocks.(L-1-I).resnets.J           of L levels
    decoder.up.I.upsample.conv              decoder.up_blocks.(L-1-I).upsamplers.0.conv
    *.mid.block_1, *.mid.block_2            *.mid_block.resnets.0, *.mid_block.resnets.1
    *.nin_shortcut, *.norm_out              *.conv_shortcut, *.conv_norm_out

Images are in [0, 1] and are not normalised further. This is the only file that imports diffusers.

Shapes: B images, S pixels of a side, G codes of a side, N = G * G ids in raster order, V codes, D latent channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.config_file import ModelConfigError

CHANNELS = (128, 256, 256, 512, 768)
"""hidden_channels 128 times channel_mult (1, 2, 2, 4, 6)."""
PARTS = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


class Vqgan(nn.Module):
    """The frozen network. The defaults are the published geometry: 146,244,675 parameters.

    Args:
        channels: of each level, from the image to the codes.
        codes: V.
        latent_dim: D, of latents and codes.
        image_size: S.

    Raises:
        ModelConfigError: diffusers is not installed.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = CHANNELS,
        codes: int = 8192,
        latent_dim: int = 64,
        image_size: int = 256,
    ) -> None:
        try:
            from diffusers import VQModel
        except ImportError:
            raise ModelConfigError("the VQGAN needs the package diffusers: pip install 'tinypi[vqgan]'") from None
        super().__init__()
        self.image_size, self.codes = image_size, codes
        self.grid = image_size >> (len(channels) - 1)
        self.network = VQModel(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=2,
            latent_channels=latent_dim,
            sample_size=image_size,
            num_vq_embeddings=codes,
            vq_embed_dim=latent_dim,
            norm_num_groups=32,
            mid_block_add_attention=False,
        )
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Vqgan:
        """Stays in evaluation mode: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images_B3SS: Tensor) -> Tensor:
        """Images in [0, 1] -> ids int64 [B, N], the nearest code of every latent."""
        latents_BND = self.network.encode(images_B3SS).latents.flatten(2).transpose(1, 2)
        return torch.cdist(latents_BND, self.codebook()[None]).argmin(dim=-1)

    @torch.no_grad()
    def decode(self, ids_BN: Tensor) -> Tensor:
        """ids -> images in [0, 1], [B, 3, S, S]."""
        vectors_BGGD = self.codebook()[ids_BN].unflatten(1, (self.grid, self.grid))
        vectors_BDGG = vectors_BGGD.permute(0, 3, 1, 2).contiguous()
        return self.network.decode(vectors_BDGG, force_not_quantize=True).sample.clamp(0, 1)

    def codebook(self) -> Tensor:
        """The vectors of the codes, [V, D]."""
        return self.network.quantize.embedding.weight


def read_vqgan_weights(path: str | Path, model: Vqgan | None = None) -> Vqgan:
    """Published weights into the network.

    Args:
        path: a .safetensors file with openMUSE's or diffusers' names.
        model: takes the weights; None makes one of the published geometry.

    Raises:
        ModelConfigError: the file is missing, damaged or of another network; names what is missing or of another shape.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelConfigError(f"{path}: missing or damaged ({error})") from None
    model = model or Vqgan()
    levels = len(model.network.config.block_out_channels)
    try:
        model.network.load_state_dict(rename_openmuse(tensors, levels))
    except RuntimeError as error:
        raise ModelConfigError(
            f"{path}: not the weights of this VQGAN ({' '.join(str(error).split())[:500]})"
        ) from None
    return model


def rename_openmuse(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """openMUSE's names to diffusers'; names that are diffusers' already stay."""
    return {_renamed(name, levels): tensor for name, tensor in tensors.items()}


def _renamed(name: str, levels: int) -> str:
    for pattern, replacement in PARTS:
        name = re.sub(pattern, replacement, name)

    def reversed_level(found: re.Match[str]) -> str:
        part = "resnets." if found[2] == "block" else "upsamplers.0."
        return f".up_blocks.{levels - 1 - int(found[1])}.{part}"

    return re.sub(r"\.up\.(\d+)\.(block|upsample)\.", reversed_level, name)
