"""Model configurations: what is accepted, and what the error says otherwise."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.pangu_pi.load_config import load_model_config
from common.config_file import ModelConfigError

from .conftest import PLAIN, SHAPE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"series_term": 2}, "unknown field 'series_term'; did you mean 'series_terms'?"),
        ({"hiden_size": 64}, "unknown field 'hiden_size'; did you mean 'hidden_size'?"),
        ({"shortcut": 1}, "unknown field 'shortcut'; did you mean 'shortcut_"),
        ({"hidden_size": "64"}, "'hidden_size' expected int, got str"),
        ({"rms_norm_eps": "1e-5"}, "'rms_norm_eps' expected float, got str"),
        ({"hidden_size": 66}, "66"),
        ({"shortcut_reduction": 7}, "shortcut_reduction 7 does not divide hidden_size 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"series_terms": 0}, "series_terms is 0; it must be at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0; it must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"shortcut_reduction": 0}, "shortcut_reduction is 0"),
        ({"shortcut_count": -1}, "shortcut_count is -1"),
        ({"series_scope": "token"}, "series_scope is 'token'; it must be one of channel, scalar"),
        ({"init_scheme": "xavier"}, "init_scheme is 'xavier'"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping is 0; it must be above 0 (such as 30), or null"),
        ({"series_activations": ["silu"]}, "series_activations names 1 functions for series_terms 2"),
        ({"series_activations": ["silu", "sigmoid"]}, "series activation 'sigmoid' is not one of silu"),
        ({"series_terms": 1, "series_activations": ["tanh"]}, "with series_terms 1 the activation is hidden_act"),
        ({"hidden_act": "sillu"}, "hidden_act is 'sillu', which transformers does not know; did you mean 'silu'?"),
        ({"shortcut_activation": "gellu"}, "shortcut_activation is 'gellu', which transformers does not know"),
    ],
)
def test_bad_fields_are_named(fields, message, tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(json.dumps({**SHAPE, **fields}))
    for source, where in ((file, str(file)), ({**SHAPE, **fields}, "model configuration")):
        with pytest.raises(ModelConfigError) as error:
            load_model_config(source)
        assert message in str(error.value) and str(error.value).startswith(where)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [1,\n", ""])
def test_a_file_that_is_not_a_mapping_is_named(text, tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(text)
    with pytest.raises(ModelConfigError, match=r"model\.yaml"):
        load_model_config(file)


def test_transformers_directories_load(tmp_path):
    ours = PanguPiConfig(**SHAPE, series_terms=3)
    ours.save_pretrained(tmp_path / "ours")
    assert load_model_config(tmp_path / "ours").to_diff_dict() == ours.to_diff_dict()

    foreign = {"final_logit_softcapping": 30.0, "qk_norm": True}  # which LLaMA does not know, so they mean nothing
    LlamaConfig(hidden_size=64, num_attention_heads=4, rope_theta=5e5, **foreign).save_pretrained(tmp_path / "llama")
    llama = load_model_config(tmp_path / "llama" / "config.json")
    assert llama.is_llama and llama.hidden_size == 64 and llama.rope_parameters["rope_theta"] == 5e5
    assert load_model_config(tmp_path / "llama", {"series_terms": 2}).series_terms == 2
    with pytest.raises(ModelConfigError, match=r"overrides of .*: unknown field 'serie_terms'"):
        load_model_config(tmp_path / "llama", {"serie_terms": 2})

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelConfigError, match="model_type is 'gpt2'"):
        load_model_config(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_model_config(tmp_path / "nothing")


@pytest.mark.parametrize("field", [{"final_logit_softcapping": 30}, {"qk_norm": True}])
def test_what_no_llama_holds_makes_the_shape_another_and_survives_a_round_trip(field, tmp_path):
    config = load_model_config({**SHAPE, **PLAIN, **field})
    assert load_model_config({**SHAPE, **PLAIN}).is_llama and not config.is_llama
    config.save_pretrained(tmp_path)
    ((name, value),) = field.items()
    assert getattr(load_model_config(tmp_path), name) == value


def test_auto_classes_know_the_model(build, tmp_path):
    build().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PanguPiConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), PanguPiForCausalLM)
