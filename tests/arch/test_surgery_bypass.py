"""Layer bypass, and the choice of layers by it."""

import json

import pytest
import torch

from arch.__main__ import main
from arch.surgery.bypass import bypass_curve, least_harmful
from arch.surgery.errors import SurgeryError
from arch.surgery.layers import choose_layers
from arch.surgery.measure import layer_inputs, mean_loss, only_layers
from arch.surgery.options import LayerOptions
from arch.surgery.slicing import keep_layers

from .conftest import PLAIN, SHAPE
from .surgery_cases import fingerprint, write_shards

DEPTH = 8


@pytest.fixture
def deep(build):
    """Eight layers, all different, with everything shaken."""
    return build(shake=True, num_hidden_layers=DEPTH).eval()


@pytest.fixture
def rows_NS():
    return torch.randint(SHAPE["vocab_size"], (6, 16), generator=torch.Generator().manual_seed(1))


def silence(layer) -> None:
    """Make a layer write nothing to the residual stream."""
    with torch.no_grad():
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, layer.shortcut.up_weight):
            weight.zero_()


def test_bypassing_nothing_is_the_model_to_the_bit(deep, ids_BS):
    with torch.no_grad():
        expected = deep(input_ids=ids_BS).logits
        with only_layers(deep, list(deep.model.layers)):
            assert torch.equal(deep(input_ids=ids_BS).logits, expected)
        states = layer_inputs(deep, ids_BS)
        assert len(states) == DEPTH + 1
        assert torch.equal(deep.lm_head(deep.model.norm(states[-1])), expected)
        for start in range(DEPTH):
            with only_layers(deep, list(deep.model.layers)[start:]):
                hidden = deep.model(inputs_embeds=states[start], use_cache=False).last_hidden_state
            assert torch.equal(deep.lm_head(hidden), expected)
        assert torch.equal(deep(input_ids=ids_BS).logits, expected)


def test_mean_loss_is_that_of_transformers(deep, rows_NS):
    with torch.no_grad():
        expected = float(deep(input_ids=rows_NS, labels=rows_NS).loss)
    assert mean_loss(deep, rows_NS, batch=4) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("span", [1, 2, 3])
def test_curves_equal_models_without_those_layers(deep, rows_NS, span):
    before = fingerprint(deep)
    curve = bypass_curve(deep, rows_NS, span, batch=4, progress=False)
    assert curve.baseline == pytest.approx(mean_loss(deep, rows_NS), rel=1e-6)
    assert len(curve.losses) == DEPTH - span + 1
    for start, loss in enumerate(curve.losses):
        kept = [index for index in range(DEPTH) if not start <= index < start + span]
        assert loss == pytest.approx(mean_loss(keep_layers(deep, kept), rows_NS), rel=1e-5)
    assert fingerprint(deep) == before


def test_contrast_is_the_mean_harm(deep, rows_NS):
    curve = bypass_curve(deep, rows_NS, progress=False)
    harms = [loss - curve.baseline for loss in curve.losses]
    contrast = curve.contrast(2)
    assert contrast["first"] == pytest.approx(sum(harms[:2]) / 2)
    assert contrast["middle"] == pytest.approx(sum(harms[2:-2]) / 4)
    assert contrast["ratio"] == pytest.approx(sum(harms[:2] + harms[-2:]) / 4 / contrast["middle"])


@pytest.mark.parametrize("method", ["greedy", "lazy_greedy", "one_pass"])
def test_layers_that_do_nothing_go_first_unless_protected(deep, method):
    for index in (0, 3, 5):
        silence(deep.model.layers[index])
    # The model's own words, so that every layer that does something is needed.
    rows_NS = deep.generate(torch.arange(1, 9)[:, None], max_new_tokens=15, do_sample=False, eos_token_id=None)
    whole = mean_loss(deep, rows_NS)
    kept, removed = least_harmful(deep, rows_NS, remove=2, protect=0, method=method, progress=False)
    assert {layer for layer, _ in removed} <= {0, 3, 5}
    assert all(loss == pytest.approx(whole, rel=1e-5) for _, loss in removed)
    kept, removed = least_harmful(deep, rows_NS, remove=2, protect=1, method=method, progress=False)
    assert kept == [0, 1, 2, 4, 6, 7] and {layer for layer, _ in removed} == {3, 5}


def test_greedy_measures_again_and_one_pass_does_not(deep, rows_NS):
    kept, removed = least_harmful(deep, rows_NS, remove=4, protect=1, method="greedy", progress=False)
    left = list(range(DEPTH))
    for layer, loss in removed:
        candidates = {c: mean_loss(keep_layers(deep, [k for k in left if k != c]), rows_NS) for c in left[1:-1]}
        assert loss == pytest.approx(candidates[layer], rel=1e-5)
        assert loss == pytest.approx(min(candidates.values()), rel=1e-5)
        left.remove(layer)
    assert kept == left
    _, at_once = least_harmful(deep, rows_NS, remove=4, protect=1, method="one_pass", progress=False)
    single = bypass_curve(deep, rows_NS, progress=False).losses
    assert [layer for layer, _ in at_once] == sorted(range(1, DEPTH - 1), key=single.__getitem__)[:4]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("first", [0, 1, 2, 3]),
        ("last", [4, 5, 6, 7]),
        ("uniform", [1, 3, 5, 7]),
        ("protected_uniform", [0, 2, 5, 7]),
    ],
)
def test_baselines_by_position(deep, rows_NS, method, expected):
    assert choose_layers(deep, 4, rows_NS, LayerOptions(method=method, protect=1)) == (expected, [])


def test_impossible_choices_say_what_to_write(deep, rows_NS):
    for options, count, message in (
        (LayerOptions(), 5, r"layers.protect 3 keeps 6 layers, the target has 5; give --layers.protect 2 or less"),
        (LayerOptions(), 9, r"num_hidden_layers is 9; the donor has 8"),
        (LayerOptions(indices=[0, 9]), 2, r"between 0 and 7; found \[0, 9\]"),
        (LayerOptions(indices=[1, 0]), 2, "must ascend"),
        (LayerOptions(indices=[0]), 2, "names 1 layers, the target has num_hidden_layers 2"),
    ):
        with pytest.raises(SurgeryError, match=message):
            choose_layers(deep, count, rows_NS, options)
    assert choose_layers(deep, 2, rows_NS, LayerOptions(indices=[0, 7])) == ([0, 7], [])


def test_layers_of_an_earlier_cut(deep, rows_NS, tmp_path):
    options = LayerOptions(same_as=str(tmp_path))
    for content in (None, "{}", '{"layers": "x"}'):
        if content is not None:
            (tmp_path / "inherit.json").write_text(content)
        with pytest.raises(SurgeryError, match="give the --out of an earlier"):
            choose_layers(deep, 2, rows_NS, options)
    (tmp_path / "inherit.json").write_text('{"layers": [1, 6]}')
    assert choose_layers(deep, 2, rows_NS, options) == ([1, 6], [])
    with pytest.raises(SurgeryError, match="not both"):
        LayerOptions(same_as="x", indices=[0])
    assert choose_layers(deep, DEPTH, rows_NS, LayerOptions()) == (list(range(DEPTH)), [])


def test_one_command_writes_all_curves(build, tmp_path, capsys):
    build(shake=True, num_hidden_layers=5, **PLAIN).save_pretrained(tmp_path / "model")
    shards = write_shards(tmp_path / "shards")
    command = ["bypass", "--donor", str(tmp_path / "model"), "--calibration", str(shards), "--rows", "4"]
    command += ["--sequence_length", "16", "--output", str(tmp_path / "out")]
    assert main([*command, "--ends", "1"]) == 0
    screen = capsys.readouterr().out
    assert [f"bypassing {span}:" in screen for span in (1, 2, 3)] == [True] * 3 and "ends / middle" in screen
    content = json.loads((tmp_path / "out" / "bypass.json").read_text())
    assert [len(curve["losses"]) for curve in content["curves"]] == [5, 4, 3]
    assert len({curve["baseline"] for curve in content["curves"]}) == 1
    assert (tmp_path / "out" / "bypass.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bypass.json", "bypass.png"]
    assert main([*command, "--ends", "2"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert "no middle between 2 at either end; use smaller --ends or --spans" in error[-1]
