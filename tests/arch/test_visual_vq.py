"""The networks of visual tokenizers: sizes, gradients, the codebook's start, and the VQGAN of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from arch.vq.configuration import VisualTokenizerConfig, load_visual_config
from arch.vq.perceptual import PerceptualDistance
from arch.vq.vq_model import VqModel
from arch.vq.vqgan import Vqgan, read_vqgan_weights
from common.config_file import ModelConfigError

ROOT = Path(__file__).resolve().parents[2]
TINY = {"image_size": 16, "grid": 4, "stem": 2, "width": 8, "blocks": 1, "codes": 12, "code_dim": 4, "levels": (3, 4)}


def make(quantizer: str, **changes: object) -> VqModel:
    torch.manual_seed(0)
    return VqModel(VisualTokenizerConfig(**{**TINY, "quantizer": quantizer, **changes}))


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
@pytest.mark.parametrize("shape", [{}, {"grid": 2}, {"stem": 4}])
def test_shapes_ids_and_flops(quantizer, shape):
    model = make(quantizer, **shape).eval()
    config = model.config
    images = torch.rand(3, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(images)
    search = 2 * 3 * config.grid**2 * config.codes * config.code_dim
    # Some versions of torch count the distances of the search as a product, some do not.
    uncounted = 3 * config.forward_flops() - counter.get_total_flops()
    assert uncounted in ((0, search) if quantizer == "vq" else (0,))
    assert output.images_B3SS.shape == images.shape and output.ids_BN.shape == (3, config.grid**2)
    assert torch.equal(model.encode(images), output.ids_BN)
    assert torch.allclose(model.decode(output.ids_BN), output.images_B3SS.clamp(0, 1), atol=1e-6)
    assert model.codebook().shape == (config.vocab_size, config.latent_dim)


def test_vq_passes_gradients_straight_through():
    """What arrives at the vectors of the codes arrives, unchanged, at the latents."""
    model = make("vq").train()
    latents, gradient = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 4, 4, 4)
    vectors, ids, _ = model.quantizer(latents)
    vectors.backward(gradient)
    assert torch.equal(latents.grad, gradient)
    assert not torch.allclose(vectors, latents) and len(ids.unique()) > 1


def test_fsq_passes_gradients_straight_through_its_rounding():
    model = make("fsq").train()
    latents = torch.randn(2, 2, 4, 4, requires_grad=True)
    model.quantizer(latents)[0].sum().backward()
    smooth = latents.detach().clone().requires_grad_(True)
    for channel, level in enumerate(model.config.levels):  # the bound of arXiv 2309.15505, without the rounding
        half = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        bounded = torch.tanh(smooth[:, channel] + torch.atanh(torch.tensor(offset / half))) * half - offset
        (bounded / (level // 2)).sum().backward()
    assert torch.allclose(latents.grad, smooth.grad, atol=1e-6)


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_every_parameter_learns(quantizer):
    model = make(quantizer).train()
    output = model(torch.rand(4, 3, 16, 16))
    (output.images_B3SS.sum() + output.commitment_B.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_commitment_is_the_distance_to_the_codes():
    model = make("vq").eval()
    images = torch.rand(3, 3, 16, 16)
    chosen = model.codebook()[model.encode(images)]
    distance = (model.latents(images).flatten(2).transpose(1, 2) - chosen).square().mean(dim=(1, 2))
    assert torch.allclose(model(images).commitment_B, distance, atol=1e-6)
    assert make("fsq")(images).commitment_B.tolist() == [0, 0, 0]


def test_a_codebook_starts_at_the_latents():
    """By k-means: the same from the same generator state, near the latents, none of it unused."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    books = []
    for seed in (0, 0, 1):
        model = make("vq").eval()
        before = model(images).commitment_B.mean()
        torch.manual_seed(seed)
        model.initialise_codebook(images)
        assert model(images).commitment_B.mean() < before / 2
        books.append(model.codebook().clone())
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])
    with pytest.raises(ValueError, match="1 images have 16 latents, fewer than 40 codes"):
        make("vq", codes=40).initialise_codebook(images[:1])


def test_a_codebook_follows_its_latents_in_training_only():
    model = make("vq", dead_code_threshold=0.0, decay=0.5)
    images = torch.rand(8, 3, 16, 16)
    start = model.codebook().clone()
    model.eval()(images)
    assert torch.equal(model.codebook(), start)
    for _ in range(200):
        model.train()(images)
    with torch.no_grad():
        latents = model.latents(images).flatten(2).transpose(1, 2)
    ids = model.eval().encode(images)
    for code in ids.unique().tolist():  # where nothing else moves, codes end in the middle of their latents
        assert torch.allclose(model.codebook()[code], latents[ids == code].mean(0), atol=1e-3)


def test_dead_codes_are_replaced():
    images = torch.rand(8, 3, 16, 16)
    for threshold, alive in ((0.0, False), (0.5, True)):
        model = make("vq", dead_code_threshold=threshold, decay=0.5)
        book = model.quantizer._codebook
        for far in (book.embed, book.embed_avg):  # one of them gets all latents, the others none
            far.copy_(torch.full((12, 4), 100.0) + torch.arange(12)[:, None])
        for _ in range(8):
            model.train()(images)
        assert (model.codebook().abs().max() < 50) == alive


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width: must be a whole number from 1 to 1,048,576, found 0"),
        ({"grid": 3}, "grid: image_size 16 must be grid 3 \\* stem 2 \\* a power of two"),
        ({"grid": 16}, "grid: image_size 16"),
        ({"quantizer": "lfq"}, "quantizer: must be vq or fsq, found 'lfq'"),
        ({"levels": [8, 2]}, "levels: must be whole numbers of at least 3"),
        ({"levels": 8}, "levels: must be a list"),
        ({"decay": 1.0}, "decay, dead_code_threshold"),
        ({"widht": 3}, "unknown field 'widht'; did you mean 'width'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path, changes, message):
    path = tmp_path / "model.yaml"
    path.write_text("")
    with pytest.raises(ModelConfigError, match="expected a mapping"):
        load_visual_config(path)
    path.write_text("image_size: 16\ngrid: 4\nstem: 2\n")
    with pytest.raises(ModelConfigError, match=f"model.yaml: {message}"):
        load_visual_config(path, changes)


def test_the_shipped_shapes_have_512_codes():
    for name in ("vq", "fsq"):
        config = load_visual_config(ROOT / f"configs/vq/models/{name}_cpu.yaml")
        assert (config.quantizer, config.vocab_size, config.image_size, config.grid) == (name, 512, 64, 8)


def test_the_vqgan_has_the_papers_parameters():
    """As its published geometry gives them (docs/methods/delvm.md: visual tokenizers)."""
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = Vqgan()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.network.named_children()}
    assert counts == {
        "encoder": 58_693_568,
        "decoder": 87_018_499,
        "quantize": 524_288,
        "quant_conv": 4_160,
        "post_quant_conv": 4_160,
    }
    assert sum(counts.values()) == 146_244_675
    assert not any(p.requires_grad for p in model.parameters())
    assert (model.grid, model.codes, model.image_size) == (16, 8192, 256) and not model.train().training


def openmuse_names(channels: tuple[int, ...], dim: int, codes: int) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of openMUSE's class."""
    shapes: dict[str, tuple[int, ...]] = {"quantize.embedding.weight": (codes, dim)}

    def conv(name: str, inputs: int, outputs: int, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, size, size), (outputs,)

    def block(name: str, inputs: int, outputs: int) -> None:
        for number, width in ((1, inputs), (2, outputs)):
            shapes[f"{name}.norm{number}.weight"] = shapes[f"{name}.norm{number}.bias"] = (width,)
            conv(f"{name}.conv{number}", width, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    last = len(channels) - 1
    for side, inputs, outputs in (("encoder", 3, channels[0]), ("decoder", dim, channels[-1])):
        conv(f"{side}.conv_in", inputs, outputs, 3)
        for number in (1, 2):
            block(f"{side}.mid.block_{number}", channels[-1], channels[-1])
        end = channels[-1] if side == "encoder" else channels[0]
        shapes[f"{side}.norm_out.weight"] = shapes[f"{side}.norm_out.bias"] = (end,)
        conv(f"{side}.conv_out", end, dim if side == "encoder" else 3, 3)
    for level, width in enumerate(channels):
        for number in range(2):
            block(f"encoder.down.{level}.block.{number}", channels[max(level - 1, 0)] if number == 0 else width, width)
        for number in range(3):
            block(f"decoder.up.{level}.block.{number}", channels[min(level + 1, last)] if number == 0 else width, width)
        if level < last:
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    for name in ("quant_conv", "post_quant_conv"):
        conv(name, dim, dim, 1)
    generator = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class OpenMuse:
    """The forward passes of openMUSE's class as published, on tensors of its names."""

    def __init__(self, tensors: dict[str, Tensor], levels: int) -> None:
        self.t, self.levels = tensors, levels

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.t[f"{name}.weight"]
        if stride == 2:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, self.t[f"{name}.bias"], stride=2)
        return F.conv2d(x, weight, self.t[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 32, self.t[f"{name}.weight"], self.t[f"{name}.bias"], eps=1e-6))

    def block(self, name: str, x: Tensor) -> Tensor:
        hidden = self.conv(f"{name}.conv1", self.norm(f"{name}.norm1", x))
        hidden = self.conv(f"{name}.conv2", self.norm(f"{name}.norm2", hidden))
        return hidden + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.t else x)

    def middle(self, side: str, x: Tensor) -> Tensor:
        return self.block(f"{side}.mid.block_2", self.block(f"{side}.mid.block_1", x))

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", x)
        for level in range(self.levels):
            for number in range(2):
                x = self.block(f"encoder.down.{level}.block.{number}", x)
            if level < self.levels - 1:
                x = self.conv(f"encoder.down.{level}.downsample.conv", x, stride=2)
        x = self.conv("encoder.conv_out", self.norm("encoder.norm_out", self.middle("encoder", x)))
        latents = self.conv("quant_conv", x).flatten(2).transpose(1, 2)
        book = self.t["quantize.embedding.weight"]
        return (latents[:, :, None] - book).square().sum(-1).argmin(-1)

    def decode(self, ids: Tensor, grid: int) -> Tensor:
        x = self.t["quantize.embedding.weight"][ids].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        x = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", x)))
        for level in reversed(range(self.levels)):
            for number in range(3):
                x = self.block(f"decoder.up.{level}.block.{number}", x)
            if level:
                x = self.conv(f"decoder.up.{level}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv("decoder.conv_out", self.norm("decoder.norm_out", x))


def test_published_weights_compute_what_they_computed(tmp_path):
    """Under openMUSE's names, at a small size: the same ids and images as its own layers give."""
    pytest.importorskip("diffusers")
    channels, dim, codes, size = (32, 64, 96), 8, 50, 32
    tensors = openmuse_names(channels, dim, codes)
    save_file(tensors, tmp_path / "model.safetensors")
    model = read_vqgan_weights(tmp_path / "model.safetensors", Vqgan(channels, codes, dim, size))
    reference, images = OpenMuse(tensors, 3), torch.rand(2, 3, size, size)
    ids = model.encode(images)
    assert model.grid == 8 and torch.equal(ids, reference.encode(images)) and len(ids.unique()) > 5
    assert torch.allclose(model.decode(ids), reference.decode(ids, 8).clamp(0, 1), atol=1e-4)
    # The same weights under diffusers' names, and files that are something else.
    save_file({name: t.contiguous() for name, t in model.network.state_dict().items()}, tmp_path / "theirs.safetensors")
    again = read_vqgan_weights(tmp_path / "theirs.safetensors", Vqgan(channels, codes, dim, size))
    assert torch.equal(again.encode(images), ids)
    tensors.pop("encoder.down.1.block.0.nin_shortcut.bias")
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(ModelConfigError, match=r"cut\.safetensors: not the weights.*conv_shortcut\.bias"):
        read_vqgan_weights(tmp_path / "cut.safetensors", Vqgan(channels, codes, dim, size))
    with pytest.raises(ModelConfigError, match=r"gone\.safetensors: missing or damaged"):
        read_vqgan_weights(tmp_path / "gone.safetensors", model)


def test_perceptual_distance(tmp_path):
    """Zero for equal images, per image, differentiable, frozen; other files are refused."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    path = tmp_path / "mobilenet.pth"
    torch.save(mobilenet_v2(weights=None).state_dict(), path)
    distance = PerceptualDistance(path).train()
    images = torch.rand(3, 3, 32, 32)
    others = images.clone()
    others[1] = 1 - others[1]
    others.requires_grad_(True)
    found = distance(images, others)
    assert found[0] == found[2] == 0 < found[1]
    assert torch.allclose(distance(images[1:2], others[1:2]), found[1:2], rtol=1e-4)
    found.sum().backward()
    assert others.grad[1].abs().max() > 0 and not distance.training
    assert not any(p.requires_grad for p in distance.parameters())
    for name, content in (("junk.pth", b"junk"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelConfigError, match=name):
            PerceptualDistance(tmp_path / name)
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelConfigError, match=r"other\.pth: no weights of torchvision's mobilenet_v2"):
        PerceptualDistance(tmp_path / "other.pth")
