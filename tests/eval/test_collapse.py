"""Diversity and effective dimension against their definitions, on known matrices and on a real forward pass."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.__main__ import main
from eval.language.text_files import TextFileError, read_texts
from eval.models import load_model
from eval.probes.collapse import (
    CollapseError,
    Moments,
    effective_dimension,
    frequent_token_scatter,
    interleaved,
    measure_collapse,
    relative_diversity,
    sequences,
    summarise,
    token_distance,
)


def test_distance_is_the_projection_that_the_paper_defines():
    h_ND = torch.randn(13, 7, dtype=torch.float64)
    e_N = torch.full((13,), 13**-0.5, dtype=torch.float64)
    projected_ND = (torch.eye(13, dtype=torch.float64) - torch.outer(e_N, e_N)) @ h_ND
    assert token_distance(h_ND) == pytest.approx(float(projected_ND.norm()), abs=1e-12)


def test_distance_is_the_minimum_over_identical_tokens():
    h_ND = torch.randn(9, 4, dtype=torch.float64)
    for _ in range(50):
        assert (h_ND - torch.randn(4, dtype=torch.float64)).norm() >= token_distance(h_ND)


def test_identical_tokens_have_no_diversity_and_centred_ones_all():
    row_D = torch.randn(5, dtype=torch.float64)
    assert relative_diversity(row_D.expand(10, 5)) < 1e-7
    centred_ND = torch.randn(10, 5, dtype=torch.float64)
    assert relative_diversity(centred_ND - centred_ND.mean(0)) == pytest.approx(1.0)
    assert relative_diversity(torch.zeros(3, 5)) == 0.0


def test_diversity_does_not_depend_on_scale():
    h_ND = torch.randn(20, 6) + 3
    assert relative_diversity(h_ND) == pytest.approx(relative_diversity(1000 * h_ND), rel=1e-6)


@pytest.mark.parametrize(
    ("eigenvalues", "threshold", "expected"),
    [
        ([1.0] * 10, 0.8, 8),
        ([1.0] * 10, 0.81, 9),
        ([4.0, 1.0], 0.8, 1),
        ([1.0, 4.0], 0.8, 1),
        ([3.9, 1.0], 0.8, 2),
        ([100.0, 0.0, 0.0], 0.99, 1),
        ([0.0, 0.0], 0.8, 0),
        ([0.1] * 7, 1.0, 7),
        ([1.0, -1e-18], 1.0, 1),
    ],
)
def test_effective_dimension_counts_components(eigenvalues, threshold, expected):
    assert effective_dimension(torch.tensor(eigenvalues, dtype=torch.float64), threshold) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(-1e6, 1e6))
def test_streamed_moments_equal_those_of_all_tokens(blocks, offset):
    torch.manual_seed(sum(blocks))
    z_ND = torch.randn(sum(blocks), 4, dtype=torch.float64) + offset
    moments = Moments(4)
    for block_ND in z_ND.split(blocks):
        moments.add(block_ND)
    centred_ND = z_ND - z_ND.mean(0)
    expected_DD = centred_ND.T @ centred_ND / len(z_ND)
    assert torch.allclose(moments.covariance_DD(), expected_DD, atol=1e-7, rtol=1e-7)


def test_features_on_a_line_have_one_dimension():
    line_ND = torch.outer(torch.randn(50, dtype=torch.float64), torch.randn(8, dtype=torch.float64))
    moments = Moments(8)
    moments.add(line_ND)
    layer = summarise(3, [0.5, 0.25], moments, 0.8)
    assert (layer.layer, layer.effective_dimension) == (3, 1)
    assert layer.share_top3 == pytest.approx(1.0)
    assert layer.isotropy_top3 == pytest.approx(0.0, abs=1e-9)
    assert layer.diversity == pytest.approx(0.375)
    assert layer.log_diversity == pytest.approx((math.log(0.5) + math.log(0.25)) / 2)


def test_layers_are_measured_on_the_states_that_transformers_records(tiny_model):
    model = load_model(str(tiny_model), "cpu").model
    chosen = [[1, *range(10, 40)], [1, *range(50, 80)], [1, *range(100, 112)]]
    layers = measure_collapse(model, chosen, batch_size=2)
    assert [layer.layer for layer in layers] == [0, 1, 2]
    for number in (0, 1):  # the recorded last state has gone through the final norm
        moments, diversities = Moments(24), []
        for ids in chosen:
            states = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            z_ND = states[number][0, 1:].detach().double()
            moments.add(z_ND)
            diversities.append(float((z_ND - z_ND.mean(0)).norm() / z_ND.norm()))
        assert layers[number].diversity == pytest.approx(sum(diversities) / 3, rel=1e-5)
        eigenvalues_D = torch.linalg.eigvalsh(moments.covariance_DD())
        assert layers[number].effective_dimension == effective_dimension(eigenvalues_D, 0.8)
        assert layers[number].variance_top3 == pytest.approx(float(eigenvalues_D[-3:].sum()), rel=1e-5)


def test_the_model_keeps_no_hooks(tiny_model):
    model = load_model(str(tiny_model), "cpu").model
    measure_collapse(model, [[1, *range(10, 40)]])
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.model.layers)


def test_sequences_start_documents_first_and_count_exactly(tiny_model):
    tokenizer = load_model(str(tiny_model), "cpu").tokenizer
    texts = ["a" * 100, "b" * 30, "c" * 100]
    chosen = sequences(texts, tokenizer, length=41, tokens=200)
    assert sum(len(ids) - 1 for ids in chosen) == 200
    assert all(ids[0] == tokenizer.bos_token_id and len(ids) <= 41 for ids in chosen)
    first_letters = [tokenizer.decode(ids[1:2]) for ids in chosen]
    assert first_letters == ["a", "b", "c", "a", "c", "a"]
    with pytest.raises(CollapseError, match="230 usable tokens, 500 are wanted"):
        sequences(texts, tokenizer, length=41, tokens=500)


def test_files_take_turns(tmp_path):
    for name in ("en", "zh"):
        rows = [json.dumps({"text": f"{name}{n}"}) for n in range(3 if name == "en" else 1)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    assert list(interleaved([tmp_path / "en.jsonl", tmp_path / "zh.jsonl"])) == ["en0", "zh0", "en1", "en2"]


def test_text_errors_name_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    with pytest.raises(TextFileError, match=r"a\.jsonl:2: no field 'text'"):
        list(read_texts(tmp_path / "a.jsonl"))
    with pytest.raises(TextFileError, match="there is no such file"):
        list(read_texts(tmp_path / "b.jsonl"))


def test_frequent_tokens_are_projected_on_the_components(tiny_model):
    model = load_model(str(tiny_model), "cpu").model
    chosen = [[1, *([20] * 6), *([30] * 4), 40, 50, 60, 70, 80], [1, 20, 30, 40, 50, 60, 71, 72, 73, 74]]
    points = frequent_token_scatter(model, chosen, [0, 2], batch_size=1)
    assert list(points) == [0, 2] and len(points[0]) == 5
    assert len(points[0][20]) == 7  # every occurrence but the dropped first positions
    at_embeddings = torch.tensor(points[0][20])
    assert torch.allclose(at_embeddings, at_embeddings[:1].expand_as(at_embeddings), atol=1e-6)
    with pytest.raises(CollapseError, match="layers 0 to 2"):
        frequent_token_scatter(model, chosen, [3], batch_size=1)


def test_command_overlays_models(tiny_model, corpus, tmp_path, capsys):
    texts = [str(corpus / "valid.en.jsonl"), str(corpus / "valid.zh.jsonl")]
    models = [f"one={tiny_model}", f"two={tiny_model}"]
    arguments = ["--tokens", "300", "--sequence_length", "64", "--scatter_layers", "1", "--output", str(tmp_path)]
    assert main(["collapse", "--model", *models, "--text", *texts, *arguments]) == 0
    result = json.loads(Path(tmp_path / "collapse.json").read_text())
    assert result["one"]["layers"] == result["two"]["layers"] and result["one"]["tokens"] == 300
    assert {path.name for path in tmp_path.glob("*.png")} == {"collapse.png", "scatter_one.png", "scatter_two.png"}
    assert main(["collapse", "--model", str(tiny_model), str(tiny_model), "--text", *texts, *arguments]) == 1
    assert "two models are called" in capsys.readouterr().err
