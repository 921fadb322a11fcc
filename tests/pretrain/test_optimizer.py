"""Parameter groups: who is decayed, who goes to Muon, nobody twice."""

import pytest
import torch

from arch.clip4str.configuration import Clip4StrConfig
from arch.clip4str.model import Clip4Str
from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.parseq.configuration import ParseqConfig
from arch.parseq.model import Parseq
from arch.vq.configuration import VisualTokenizerConfig
from arch.vq.vq_model import VqModel
from pretrain.config import OptimizerConfig
from pretrain.optimizers.optimizer import build_optimizer, parameter_groups


@pytest.fixture(scope="module")
def model():
    config = PanguPiConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        series_terms=2, shortcut_count=1, shortcut_reduction=4, tie_word_embeddings=False,
    )  # fmt: skip
    return PanguPiForCausalLM(config)


def names(groups):
    return {group.name: set(group.parameter_names) for group in groups}


def test_every_parameter_in_exactly_one_group_and_series_scales_undecayed(model):
    groups = parameter_groups(model, model.no_weight_decay(), OptimizerConfig())
    listed = [name for group in groups for name in group.parameter_names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    by_name = names(groups)
    assert model.no_weight_decay() and model.no_weight_decay() <= by_name["undecayed"]
    assert all(parameter.ndim >= 2 for group in groups if group.name == "decayed" for parameter in group.parameters)
    norms = {name for name, _ in model.named_parameters() if "norm" in name}
    assert norms and norms <= by_name["undecayed"]
    assert {group.name: group.weight_decay for group in groups} == {"decayed": 0.1, "undecayed": 0.0}


def test_muon_takes_the_matrices_of_the_blocks_only(model):
    by_name = names(parameter_groups(model, model.no_weight_decay(), OptimizerConfig(name="muon")))
    assert by_name["decayed"] == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(".layers." in name for name in by_name["muon"])
    assert not by_name["muon"] & model.no_weight_decay()


WORDS = {"width": 16, "decoder_heads": 2, "characters": 10, "max_length": 8}
PARSEQ = {**WORDS, "encoder_layers": 1, "encoder_heads": 2, "image_width": 32, "patch_height": 8}
CLIP = {
    **WORDS, "image_size": 16, "patch_size": 8, "vision_width": 24, "vision_layers": 1, "vision_heads": 2,
    "text_width": 8, "text_layers": 1, "text_heads": 2, "text_tokens": 258, "text_positions": 16,
    "frozen_text_layers": 0,
}  # fmt: skip
CODES = {"image_size": 16, "grid": 4, "stem": 2, "width": 8, "blocks": 1, "codes": 12, "code_dim": 4}
IMAGE_MODELS = {
    "patches": (lambda: Parseq(ParseqConfig(**PARSEQ)), {"encoder.patch_embed.proj.weight", "head.weight"}),
    "convolutions": (
        lambda: Parseq(ParseqConfig(**PARSEQ, stem="convolution")),
        {"encoder.patch_embed.layers.0.weight", "head.weight"},
    ),
    "clip": (
        lambda: Clip4Str(Clip4StrConfig(**CLIP), caption=lambda ids: ids),
        {
            "clip.vision_model.embeddings.patch_embedding.weight",
            "clip.vision_model.embeddings.position_embedding.weight",
            "clip.text_model.embeddings.token_embedding.weight",
            "clip.text_model.embeddings.position_embedding.weight",
            "visual_decoder.head.weight",
            "cross_decoder.head.weight",
        },
    ),
    "tokenizer": (
        lambda: VqModel(VisualTokenizerConfig(**CODES)),
        {"encoder.1.weight", "decoder.7.weight"},
    ),
}
"""Model of images -> its builder, and the decayed matrices that AdamW keeps: what reads pixels or ids, what writes."""


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_muon_leaves_the_ends_of_image_models_to_adamw(name):
    build, ends = IMAGE_MODELS[name]
    image_model = build()
    spared = image_model.no_weight_decay() if hasattr(image_model, "no_weight_decay") else set()
    by_name = names(parameter_groups(image_model, spared, OptimizerConfig(name="muon")))
    assert by_name["decayed"] == ends
    named = dict(image_model.named_parameters())
    trained = {n for n, p in named.items() if p.requires_grad}
    assert by_name["muon"] == {n for n in trained if named[n].ndim > 1} - ends - spared
    # AdamW alone treats them as it did before they had a name.
    assert names(parameter_groups(image_model, spared, OptimizerConfig()))["decayed"] == by_name["muon"] | ends


def test_unknown_undecayed_name_is_an_error(model):
    with pytest.raises(ValueError, match=r"no_such\.weight"):
        parameter_groups(model, {"no_such.weight"}, OptimizerConfig())


def test_adamw_carries_the_hyperparameters(model):
    config = OptimizerConfig(betas=(0.8, 0.9), eps=1e-6)
    optimizer = build_optimizer(parameter_groups(model, model.no_weight_decay(), config), config, lr=0.5)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {(g["lr"], tuple(g["betas"]), g["eps"], g["fused"]) for g in optimizer.param_groups} == {
        (0.5, (0.8, 0.9), 1e-6, True)
    }


def test_parts_have_learning_rates_of_their_own(model):
    """Rates follow the factor, in every group and under both optimizers; nobody is lost or decayed otherwise."""
    for name in ("adamw", "muon"):
        config = OptimizerConfig(name=name, muon_lr=0.1)
        plain = parameter_groups(model, model.no_weight_decay(), config)
        groups = parameter_groups(model, model.no_weight_decay(), config, {"model.layers.1.": 19.0, "lm_head.": 2.0})
        assert sorted(n for group in groups for n in group.parameter_names) == sorted(
            n for group in plain for n in group.parameter_names
        )
        kinds = {n: (group.weight_decay, group.use_muon) for group in plain for n in group.parameter_names}
        for group in groups:
            assert {kinds[n] for n in group.parameter_names} == {(group.weight_decay, group.use_muon)}
            factor = {n: 19.0 if n.startswith("model.layers.1.") else 2.0 if "lm_head" in n else 1.0 for n in kinds}
            assert {factor[n] for n in group.parameter_names} == {group.lr_factor}
        if name == "adamw":
            optimizer = build_optimizer(groups, config, lr=0.5)
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            assert rates == {
                "decayed": 0.5,
                "undecayed": 0.5,
                "decayed x19": 9.5,
                "undecayed x19": 9.5,
                "decayed x2": 1.0,
            }


def test_factors_that_fit_nothing_or_twice_are_errors(model):
    for factors, message in (({"decodre.": 2.0}, "decodre"), ({"model.": 2.0, "model.layers.": 3.0}, "several")):
        with pytest.raises(ValueError, match=message):
            parameter_groups(model, set(), OptimizerConfig(), factors)


def test_kinds_have_learning_rates_of_their_own():
    """Tables, head and vectors follow their factors under both optimizers; the matrices of the blocks follow none."""
    for tied in (False, True):
        shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        small = PanguPiForCausalLM(PanguPiConfig(**shape, num_attention_heads=2, tie_word_embeddings=tied))
        for name in ("adamw", "muon"):
            config = OptimizerConfig(name=name, embedding_lr_factor=3.0, head_lr_factor=5.0, vector_lr_factor=7.0)
            groups = parameter_groups(small, small.no_weight_decay(), config)
            factor = {n: group.lr_factor for group in groups for n in group.parameter_names}
            expected = {
                n: 7.0 if p.ndim < 2 or n in small.no_weight_decay() else 1.0 for n, p in small.named_parameters()
            }
            expected["model.embed_tokens.weight"] = 3.0
            if not tied:
                expected["lm_head.weight"] = 5.0
            assert factor == expected
            muon = {n for group in groups if group.use_muon for n in group.parameter_names}
            assert muon == ({n for n, f in expected.items() if f == 1.0} if name == "muon" else set())
