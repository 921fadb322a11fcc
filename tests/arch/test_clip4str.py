"""CLIP4STR: sizes, what is frozen, which loss reaches what, and decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from arch.clip4str.configuration import Clip4StrConfig, load_clip4str_config
from arch.clip4str.decoding import recognise
from arch.clip4str.model import Clip4Str, load_clip_weights
from arch.pangu_pi.load_weights import WeightsError
from arch.parseq.orderings import sample_orderings
from common.config_file import ModelConfigError
from tokenizer.characters import CharacterTokenizer
from tokenizer.clip_captions import CaptionTokenizer

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "width": 16, "decoder_heads": 2, "characters": 10, "max_length": 8, "image_size": 16, "patch_size": 8,
    "vision_width": 24, "vision_layers": 2, "vision_heads": 2, "text_width": 8, "text_layers": 8, "text_heads": 2,
    "text_tokens": 258, "text_positions": 16,
}  # fmt: skip
CHARACTERS = "abcdefGHIJ"


def small(seed: int = 0, **changes: Any) -> Clip4Str:
    torch.manual_seed(seed)
    config = Clip4StrConfig(**{**SMALL, **changes})
    captions = CaptionTokenizer(CharacterTokenizer(CHARACTERS), "abcdefghij", None, config.caption_length)
    model = Clip4Str(config, captions).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # trained-looking: nothing is zero, nothing equals its neighbour
    return model


def images(count: int = 2, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def context() -> tuple[Tensor, Tensor]:
    """Two labels of four and two characters, and six orderings."""
    ids = torch.tensor([[11, 3, 1, 4, 1], [11, 2, 2, 0, 12]])
    return ids, sample_orderings(4, 6, torch.Generator().manual_seed(1))


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize(
    ("name", "clip", "decoder", "total", "frozen", "trainable"),
    [
        ("b", 149_620_737, 4_317_791, 158_256_319, 44_250_625, 114_005_694),
        ("l", 427_616_513, 9_622_367, 446_861_247, 80_531_713, 366_329_534),
        ("h", 986_109_441, 17_024_095, 1_020_157_631, 126_249_985, 893_907_646),
    ],
)
def test_parameters_are_the_published_ones(name, clip, decoder, total, frozen, trainable):
    with torch.device("meta"):
        model = Clip4Str(load_clip4str_config(ROOT / f"configs/clip4str/models/{name}.yaml"), lambda ids: ids)
    parts = (model.clip, model.visual_decoder, model.cross_decoder, model)
    assert [count(part.parameters()) for part in parts] == [clip, decoder, decoder, total]
    assert count(p for p in model.parameters() if not p.requires_grad) == frozen
    assert count(p for p in model.parameters() if p.requires_grad) == trainable


def test_nothing_of_a_text_encoder_from_scratch_is_frozen():
    model = small(frozen_text_layers=0)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["clip.logit_scale"]


def with_gradient(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def parts(model: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("branch", ["visual", "cross"])
def test_each_loss_reaches_its_own_parts(branch):
    model = small()
    logits = getattr(model(images(), *context()), branch)
    F.cross_entropy(logits.flatten(0, 2), torch.randint(0, 11, logits.shape[:3]).flatten()).backward()
    touched = with_gradient(model)
    text, vision = "clip.text_model.encoder.layers.", ("clip.vision_model.", "clip.visual_projection.")
    if branch == "visual":
        assert touched & parts(model, *vision) == parts(model, *vision)
        assert not touched & parts(model, "clip.text", "cross_decoder.")
    else:
        trained = parts(model, f"{text}6.", f"{text}7.", "clip.text_model.final_layer_norm", "clip.text_projection")
        # The bias of a key moves every score of a query alike.
        assert touched & parts(model, "clip.") >= {name for name in trained if not name.endswith("k_proj.bias")}
        assert not touched & parts(model, *vision, "visual_decoder.", *(f"{text}{n}." for n in range(6)))
        assert not touched & parts(model, "clip.text_model.embeddings.")


def test_the_cross_memory_is_the_image_and_the_caption_of_each_ordering():
    model = small(image_size=224, patch_size=16, vision_layers=1)
    for parameter in model.visual_decoder.parameters():
        nn.init.normal_(parameter)  # orderings and images differ in what is read
    seen: list[np.ndarray] = []
    caption = model.caption
    model.caption = lambda ids: seen.append(caption(ids)) or seen[-1]
    memories = []
    model.cross_decoder.register_forward_pre_hook(lambda _, arguments: memories.append(arguments[0]))
    visual, _ = model(images(size=224), *context())
    (memory_BKNE,), (ids_BKS,) = memories, seen
    assert memory_BKNE.shape == (2, 6, 197 + 16, 16) and ids_BKS.shape == (2, 6, 16)
    chosen = visual.argmax(-1)
    for sample, length in enumerate((4, 2)):  # captions end with the label, in the first two orderings one later
        chosen[sample, :2, length + 1 :] = chosen[sample, 2:, length:] = 0
    read = [CharacterTokenizer(CHARACTERS).decode(row).lower() for row in chosen.flatten(0, 1).numpy()]
    for word, row in zip(read, ids_BKS.reshape(-1, 16).tolist(), strict=True):
        assert row == [256, *word.encode(), 257] + [0] * (14 - len(word))
    assert len(set(read)) > 3
    image_BME = model.encode_image(images(size=224))
    assert torch.allclose(memory_BKNE[:, 3, :197], image_BME, atol=1e-5)
    alone = model.clip.text_model(input_ids=torch.from_numpy(ids_BKS[:, 4])).last_hidden_state
    assert torch.allclose(memory_BKNE[:, 4, 197:], model.clip.text_projection(alone), atol=1e-5)


def test_a_longer_neighbour_changes_nothing():
    """Two labels of six and five characters, together and the shorter one alone, under orderings that agree."""
    model, ids = small(), torch.tensor([[11, 3, 1, 4, 1, 5, 9], [11, 2, 2, 6, 7, 8, 0]])
    for decoder in (model.visual_decoder, model.cross_decoder):
        decoder.head.bias.data[0] = -99.0  # the longest readings
    long, short = (sample_orderings(length, 6, torch.Generator().manual_seed(4), longest=8) for length in (6, 5))
    together, apart = model(images(), ids, long), model(images()[1:], ids[1:, :6], short)
    for both, alone in zip(together, apart, strict=True):
        assert torch.allclose(both[1, :, :5], alone[0, :, :5], atol=1e-5)


def test_orderings_do_not_see_one_another():
    model, (ids, orderings) = small(), context()
    together = model(images(), ids, orderings)
    for row in range(2, len(orderings)):
        for all_of_them, three in zip(together, model(images(), ids, orderings[[0, 1, row]]), strict=True):
            assert torch.allclose(all_of_them[:, [0, 1, row]], three, atol=1e-5)


def test_decoding_is_both_branches_one_after_the_other():
    """Against teacher forcing of what is read: left to right without refinement, in both branches."""
    model = small()
    for decoder in (model.visual_decoder, model.cross_decoder):
        decoder.head.bias.data[0] = -99.0  # no end: the whole length is decoded
    with torch.no_grad():
        cross = recognise(model, images(3), refinements=0)
        assert cross.shape == (3, 9, 11)
        image = model.encode_image(images(3))
        start, forward = torch.full((3, 1), 11), torch.arange(10)[None]
        context_BL = start
        for _ in range(8):
            ordering = torch.arange(context_BL.shape[1] + 1)[None]
            visual = model.visual_decoder(image, context_BL, ordering)
            context_BL = torch.cat([context_BL, visual[:, 0, -1:].argmax(-1)], dim=1)
        visual = model.visual_decoder(image, context_BL, forward)
        memory = model.cross_memory(image[:, None], visual.argmax(-1))
        chosen = torch.cat([start, cross[:, :-1].argmax(-1)], dim=1)
        assert torch.allclose(cross, model.cross_decoder(memory, chosen, forward)[:, 0], atol=1e-4)


def test_every_refinement_has_a_new_caption():
    model = small()
    captions, caption = [], model.caption
    model.caption = lambda ids: captions.append(caption(ids)) or captions[-1]
    for mode, refinements in (("autoregressive", 2), ("parallel", 0), ("parallel", 1)):
        captions.clear()
        recognise(model, images(), mode, refinements)
        assert len(captions) == 1 + refinements


def test_a_reading_does_not_depend_on_its_neighbours():
    model, batch = small(), images(6)
    together = recognise(model, batch).argmax(-1)
    tokenizer = CharacterTokenizer(CHARACTERS)
    for number in range(6):
        alone = recognise(model, batch[number : number + 1]).argmax(-1)
        assert tokenizer.decode(alone[0].numpy()) == tokenizer.decode(together[number].numpy())


def test_weights_of_clip_are_taken_and_checked(tmp_path):
    model = small(2)
    donor = CLIPModel(model.config.clip_config())
    donor.save_pretrained(tmp_path / "clip")
    load_clip_weights(model, tmp_path / "clip")
    assert all(
        torch.equal(a, b) for a, b in zip(model.clip.parameters(), donor.parameters(), strict=True) if a.ndim > 1
    )
    assert model.clip.logit_scale.item() == donor.logit_scale.item()
    for changes, message in (
        ({"text_heads": 4}, r"text_config\.num_attention_heads is 2, the model's is 4"),
        ({"activation": "gelu"}, r"text_config\.hidden_act is quick_gelu"),
        ({"width": 32}, r"config\.projection_dim is 16"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_clip_weights(small(**changes), tmp_path / "clip")
    with pytest.raises(WeightsError, match="no CLIP model"):
        load_clip_weights(model, tmp_path)


def test_wrong_sizes_are_named():
    for changes, message in (
        ({"vision_heads": 5}, "vision_heads: vision_width 24 is not a multiple of 5"),
        ({"patch_size": 5}, "patch_size: image_size 16"),
        ({"caption_length": 17}, "caption_length: 17 tokens do not fit into text_positions 16"),
        ({"frozen_text_layers": 9}, "frozen_text_layers: 9 of 8"),
        ({"frozen_text_layers": -1}, "frozen_text_layers: must be a whole number of at least 0"),
        ({"activation": "relu"}, "activation: must be one of quick_gelu, gelu"),
    ):
        with pytest.raises(ModelConfigError, match=message):
            Clip4StrConfig(**{**SMALL, **changes})


def test_pixels_are_normalised_as_clip_does():
    pixels = torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8)
    config = Clip4StrConfig()
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (config.pixel_mean, config.pixel_deviation))
    assert torch.allclose(config.normalise(pixels), (pixels / 255 - mean) / deviation, atol=1e-5)


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = small(vision_width=48, vision_layers=4, width=32, text_width=32, image_size=32)
    model.caption = lambda ids: np.zeros((*ids.shape[:-1], 16), np.int64)  # what has been learnt is read alike
    ids, orderings = context()
    with FlopCounterMode(display=False) as counter:
        sum(logits.sum() for logits in model(images(1, 32), ids[:1], orderings)).backward()
    assert model.config.training_flops(5, 6) == pytest.approx(counter.get_total_flops(), rel=0.2)
