"""PARSeq: sizes, orderings, masks, and decoding against a plain transcription of the equations."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arch.parseq.configuration import ParseqConfig, load_parseq_config
from arch.parseq.decoding import recognise, refine
from arch.parseq.model import Parseq
from arch.parseq.orderings import attention_masks, cloze_mask, sample_orderings
from common.config_file import ModelConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "width": 24, "encoder_layers": 1, "encoder_heads": 2, "decoder_heads": 3, "characters": 10, "max_length": 8,
    "image_height": 16, "image_width": 32, "patch_height": 8, "patch_width": 8,
}  # fmt: skip


def small(layers: int = 1, seed: int = 0, **changes) -> Parseq:
    torch.manual_seed(seed)
    model = Parseq(ParseqConfig(**{**SMALL, "decoder_layers": layers, **changes})).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # trained-looking: nothing is zero, nothing equals its neighbour
    return model


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "overrides", "parameters"),
    [
        ("ti", {}, 6_018_143),
        ("s", {}, 23_832_671),
        ("s", {"decoder_layers": 2}, 26_200_031),
        ("s", {"characters": 36}, 23_788_069),
        ("s", {"image_height": 224, "image_width": 224, "patch_height": 16, "patch_width": 16}, 24_116_831),
        ("b", {}, 104_304_479),
        ("b", {"decoder_layers": 1}, 94_851_167),
        ("l", {}, 336_364_639),
        ("l", {"decoder_layers": 1}, 319_565_919),
        ("h", {}, 682_732_895),
        ("h", {"decoder_layers": 1}, 656_491_615),
        ("cpu_xxs", {"characters": 36}, 54_117),
        ("cpu_xs", {"characters": 36}, 140_149),
        ("cpu_s", {"characters": 36}, 290_085),
        ("cpu_m", {"characters": 36}, 743_557),
        ("cpu_l", {"characters": 36}, 1_500_965),
        ("cpu_xl", {"characters": 36}, 4_222_501),
        ("cpu_s", {"characters": 36, "stem": "convolution"}, 317_205),
    ],
)
def test_parameters_are_the_published_ones(name, overrides, parameters):
    with torch.device("meta"):
        model = Parseq(load_parseq_config(ROOT / f"configs/parseq/models/{name}.yaml", overrides))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_parts_of_the_small_one():
    with torch.device("meta"):
        model = Parseq(ParseqConfig())
    parts = (model.encoder, model.decoder, model.head, model.text_embed)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [21_380_736, 2_368_128, 36_575, 37_248]
    assert model.pos_queries.numel() == 9_984


def test_wrong_sizes_are_named(tmp_path):
    for fields, message in (
        ("widht: 3", r"unknown field 'widht'; did you mean 'width'"),
        ("width: 100", r"encoder_heads: width 100 is not a multiple of 6"),
        ("patch_width: 7", r"patch_width: image_width 128 is not a multiple of 7"),
        ("dropout: 1", r"dropout"),
        ("stem: conv", r"stem: expected one of patch, convolution, found 'conv'"),
        (
            "{stem: convolution, patch_width: 128, width: 96}",
            r"stem: patch_height 4 .*power of two",
        ),
        ("width: '8'", r"width: Input should be a valid integer, found '8'"),
        ("[1]", r"expected a mapping"),
        ("a: [", r"not YAML"),
    ):
        (tmp_path / "x.yaml").write_text(fields)
        with pytest.raises(ModelConfigError, match=message):
            load_parseq_config(tmp_path / "x.yaml")
    with pytest.raises(FileNotFoundError):
        load_parseq_config(tmp_path / "no.yaml")


@pytest.mark.parametrize("length", range(1, 9))
def test_orderings_of_every_length(length):
    for seed in range(20):
        rows = sample_orderings(length, 6, generator(seed))
        assert len(rows) == {1: 1, 2: 2}.get(length, 6)
        assert rows[0].tolist() == list(range(length + 2))
        assert (rows.sort(dim=1).values == torch.arange(length + 2)).all() and (rows[:, 0] == 0).all()
        if length > 1:
            assert rows[1].tolist() == [0, *range(length + 1, 0, -1)]
        for first in range(2, len(rows), 2):
            assert rows[first, 1:-1].tolist() == rows[first + 1, 1:-1].flip(0).tolist()
            assert (rows[first : first + 2, -1] == length + 1).all()
        characters = [tuple(row[row.ne(0) & row.ne(length + 1)].tolist()) for row in rows]
        if length <= 4:
            assert len(set(characters)) == len(rows)
    assert torch.equal(sample_orderings(length, 6, generator(5)), sample_orderings(length, 6, generator(5)))


def test_short_words_use_every_ordering():
    three = {tuple(row[row.gt(0) & row.lt(4)].tolist()) for row in sample_orderings(3, 6, generator())}
    assert three == set(itertools.permutations((1, 2, 3)))
    rows = sample_orderings(4, 24, generator())
    four = [tuple(row[row.gt(0) & row.lt(5)].tolist()) for row in rows]
    assert len(four) == 24 and set(four) == set(itertools.permutations((1, 2, 3, 4)))


def test_orderings_of_two_lengths_agree_where_they_overlap():
    long, short = (sample_orderings(length, 6, generator(9), longest=25) for length in (14, 9))
    for left, right in zip(long[2:], short[2:], strict=True):
        assert left[left.lt(10)].tolist() == right[:-1].tolist()


@pytest.mark.parametrize("count", [0, 3, -2])
def test_odd_numbers_of_orderings_are_refused(count):
    with pytest.raises(ValueError, match="count"):
        sample_orderings(5, count, generator())
    with pytest.raises(ValueError, match="length"):
        sample_orderings(0, 6, generator())


def test_the_masks_of_the_specification():
    orderings = torch.tensor([[0, 1, 2, 3, 4], [0, 4, 3, 2, 1], [0, 2, 1, 3, 4]])
    _, query = attention_masks(orderings)
    assert query.int().tolist() == [
        [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]],
        [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]],
        [[0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]],
    ]
    assert cloze_mask(4).int().tolist() == [[[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]]


def test_masks_follow_the_ordering():
    orderings = sample_orderings(6, 6, generator(4))
    content, query = attention_masks(orderings)
    for row, ordering in enumerate(orderings.tolist()):
        place = {position: number for number, position in enumerate(ordering)}
        for i, k in itertools.product(range(7), range(7)):
            assert bool(query[row, i, k]) == (k == i + 1 or place[k] > place[i + 1])
            assert bool(content[row, i, k]) == (place[k] > place[i])
    before = content.clone()
    query.fill_(True)
    assert torch.equal(content, before)


@pytest.mark.parametrize("layers", [1, 2])
def test_masks_hold_by_gradient(layers):
    model = small(layers)
    orderings = sample_orderings(5, 6, generator(2))
    _, query = attention_masks(orderings)
    context = torch.tensor([[model.config.bos, 3, 1, 4, 1, 5]])
    embedded = []
    model.text_embed.register_forward_hook(lambda _, __, output: embedded.append(output) or output.retain_grad())
    logits = model(images(1), context, orderings)
    for row, output in itertools.product(range(len(orderings)), range(6)):
        (gradient,) = torch.autograd.grad(logits[0, row, output].sum(), embedded[0], retain_graph=True)
        reached = gradient[0].abs().amax(dim=-1) > 0
        assert reached.tolist() == (~query[row, output]).tolist()


@pytest.mark.parametrize("layers", [1, 2])
def test_decoding_one_by_one_equals_teacher_forcing(layers):
    model = small(layers)
    model.head.bias.data[0] = -9.0  # no end: the whole length is decoded
    logits = recognise(model, images(3), refinements=0)
    assert logits.shape == (3, 9, 11)
    chosen = logits[:, :-1].argmax(-1)
    context = torch.cat([torch.full((3, 1), model.config.bos), chosen], dim=1)
    forced = model(images(3), context, torch.arange(10)[None])[:, 0]
    assert torch.allclose(logits, forced, atol=1e-12, rtol=0)


def test_parallel_decoding_sees_only_the_beginning():
    model = small()
    logits = recognise(model, images(), mode="parallel", refinements=0)
    context = torch.full((2, 9), model.config.bos)
    blocked = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    blocked[..., 0] = False
    assert torch.allclose(logits, model.decode(model.encoder(images()), context, blocked, None)[:, 0], atol=1e-12)


def test_decoding_stops_when_every_word_has_ended():
    model = small()
    model.head.bias.data[0] = 99.0
    assert recognise(model, images(), refinements=0).shape[1] == 1
    assert recognise(model, images(), refinements=1, max_length=3).shape[1] == 1
    model.head.bias.data[0] = -99.0
    assert recognise(model, images(), refinements=1, max_length=3).shape[1] == 4
    assert recognise(model, images(), refinements=1, max_length=99).shape[1] == 9


@pytest.mark.parametrize("layers", [1, 2])
def test_refinement_hides_the_character_itself_and_what_follows_the_end(layers):
    model = small(layers)
    memory = model.encoder(images(1))

    def one_hot(ids: list[int]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor([ids]), model.config.classes).double()

    base = refine(model, memory, one_hot([3, 1, 4, 1, 5, 9]))
    for place in range(5):
        ids = [3, 1, 4, 1, 5, 9]
        ids[place] = 7
        changed = (refine(model, memory, one_hot(ids)) - base)[0].abs().amax(-1) > 0
        assert changed.tolist() == [output != place for output in range(6)]
    ended, other = (
        refine(model, memory, one_hot([3, 1, 0, 5, 5, 5])),
        refine(model, memory, one_hot([3, 1, 0, 2, 0, 2])),
    )
    assert torch.equal(ended, other)


def test_a_shorter_neighbour_changes_nothing():
    model = small()
    end, pad, bos = model.config.eos, model.config.pad, model.config.bos
    both = torch.tensor([[bos, 1, 2, end, pad], [bos, 5, 6, 7, 8]])
    together = model(images(), both, sample_orderings(4, 6, generator()))[0, 0, :3]
    alone = model(images()[:1], both[:1, :3], sample_orderings(2, 6, generator()))[0, 0]
    assert torch.allclose(together, alone, atol=1e-12)


def test_the_end_is_predicted_from_everything_or_from_nothing():
    """Row 0 predicts [E] from all characters, row 1 from [B] and the image alone, for short and long labels."""
    model = small()
    end, pad, bos = model.config.eos, model.config.pad, model.config.bos
    context = torch.tensor([[bos, 1, 2, end, pad], [bos, 5, 6, 7, 8]])
    orderings = sample_orderings(4, 6, generator())
    base = model(images(), context, orderings)
    for sample, place, output in ((0, 1, 2), (0, 2, 2), (1, 1, 4), (1, 4, 4)):
        edited = context.clone()
        edited[sample, place] = 9
        moved = (model(images(), edited, orderings) - base)[sample, :, output].abs().amax(-1) > 0
        assert moved[0] and not moved[1]


def test_positions():
    model = small(dropout=0.0)
    context = torch.tensor([[model.config.bos, 3, 1]])
    embedded = model._embed(context)
    table = model.text_embed.embedding.weight * math.sqrt(24)
    assert torch.equal(embedded[0, 0], table[model.config.bos])
    assert torch.allclose(embedded[0, 2], table[1] + model.pos_queries[0, 1])
    memory = model.encoder(images(1))
    before = model.decode(memory, context, None, None, slice(0, 9))
    model.pos_queries.data[0, 8] += 1.0
    moved = (model.decode(memory, context, None, None, slice(0, 9)) - before)[0, 0].abs().amax(-1) > 0
    assert moved.tolist() == [False] * 8 + [True]


def test_the_content_mask_matters_from_two_layers_on():
    context = torch.tensor([[11, 3, 1, 4, 1, 5]] * 2)
    for layers, stem in ((1, "patch"), (2, "patch"), (1, "convolution")):
        model = small(layers, stem=stem)
        content, query = attention_masks(sample_orderings(5, 6, generator()))
        memory = model.encoder(images())
        left = model.decode(memory, context, query[None], content[None])
        right = model.decode(memory, context, query[None], torch.zeros_like(content)[None])
        assert torch.equal(left, right) == (layers == 1)


@pytest.mark.parametrize("layers", [1, 2])
def test_all_orderings_at_once_equal_one_after_the_other(layers):
    model, context = small(layers), torch.tensor([[11, 3, 1, 4, 1, 5], [11, 2, 2, 0, 12, 12]])
    orderings = sample_orderings(5, 6, generator(7))
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    together = model(images(), context, orderings)
    assert len(calls) == 1
    for row in range(len(orderings)):
        alone = model(images(), context, orderings[row : row + 1])
        assert torch.allclose(together[:, row], alone[:, 0], atol=1e-12)


def test_attention_is_torch_s():
    """Same names, same numbers as nn.MultiheadAttention, so weights of `baudm/parseq` load."""
    from arch.parseq.decoder import Attention

    ours = Attention(24, 3, 0.0).double()
    theirs = nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x, source = torch.rand(2, 1, 5, 24).double(), torch.rand(2, 1, 7, 24).double()
    blocked = torch.rand(5, 7, generator=generator(1)) < 0.4
    blocked[:, 0] = False
    expected, _ = theirs(x[:, 0], source[:, 0], source[:, 0], attn_mask=blocked)
    assert torch.allclose(ours(x, source, blocked[None, None])[:, 0], expected, atol=1e-12)


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for layers in (1, 2):
        model = small(layers)
        context = torch.full((1, 6), 1)
        context[0, 0] = model.config.bos
        with FlopCounterMode(display=False) as counter:
            model(images(1), context, sample_orderings(5, 6, generator()))
        assert model.config.forward_flops(6, 6) == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_initial_loss_is_that_of_guessing():
    torch.manual_seed(0)
    model = Parseq(load_parseq_config(ROOT / "configs/parseq/models/cpu_s.yaml", {"characters": 36})).eval()
    context = torch.randint(1, 37, (16, 8), generator=generator())
    logits = model(
        torch.rand(16, 3, 32, 128) * 2 - 1,
        torch.cat([torch.full((16, 1), 37), context[:, :-1]], 1),
        sample_orderings(7, 6, generator()),
    )
    loss = torch.nn.functional.cross_entropy(logits[:, 0].flatten(0, 1), context.flatten())
    assert loss.item() == pytest.approx(math.log(37), abs=0.15)


def test_narrow_models_start_with_larger_matrices():
    made = []
    for name in ("released", "narrow"):
        torch.manual_seed(0)
        sizes = {"width": 64, "encoder_layers": 1, "encoder_heads": 4, "decoder_heads": 4, "initialisation": name}
        made.append(Parseq(ParseqConfig(**sizes)))
    released, narrow = made
    spread = lambda model: [  # noqa: E731
        float(p.detach().std())
        for p in (model.encoder.blocks[0].mlp.fc1.weight, model.decoder.layers[0].linear1.weight)
    ]
    assert spread(released) == pytest.approx([0.02, 0.02], rel=0.1)
    assert spread(narrow) == pytest.approx([64**-0.5, 64**-0.5], rel=0.1)
    for positions in (narrow.encoder.pos_embed, narrow.pos_queries):
        assert float(positions.detach().std()) == pytest.approx(0.2, rel=0.1)
    assert torch.equal(released.head.weight, narrow.head.weight)
    with pytest.raises(ModelConfigError, match="narrow"):
        ParseqConfig(initialisation="wide")


def test_a_stem_of_convolutions_makes_the_same_patches_of_each_image_alone():
    model = small(stem="convolution", patch_height=4, patch_width=8)
    pictures = images(3)
    tokens = model.encoder.forward_features(pictures)
    assert tokens.shape == (3, 16, 24)
    assert torch.allclose(tokens[1:2], model.encoder.forward_features(pictures[1:2]), atol=1e-12)
