"""Prompts, losses and measures of visual models: layout, no leaks, baselines, the command on a tiny random model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from data_pipeline.pairs.tasks import CAMVID_PALETTE
from eval.__main__ import main
from eval.prompting.control import TaskClassifier
from eval.prompting.encoded_pairs import VisualModel, draw_sentences, encode_set
from eval.prompting.metrics import VOID, edge_f1, mean_answer, mean_iou, mean_psnr, mean_ssim, measure, nearest_class
from eval.prompting.prompts import choose_examples, examples_of, generate_images, make_prompts, prompts_of
from eval.prompting.sentence_losses import SentenceLosses, sentence_losses, summarise, unigram_losses
from eval.prompting.sets import VisionError, parse_sets
from tests.data_pipeline.visual_cases import encoded as encode_image
from tests.data_pipeline.visual_cases import write_table
from tokenizer.visual.patches import fit_patches

SIZE, PATCH, CODES = 16, 4, 24
TOKENS = (SIZE // PATCH) ** 2


def photographs(count: int, seed: int) -> list[np.ndarray]:
    """Smooth random pictures, no two alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)) for image in coarse]


def write_photographs(path: Path, count: int, seed: int) -> Path:
    return write_table(path, image=[encode_image(image) for image in photographs(count, seed)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random model with its tokenizer, photographs, and sets of two tasks on them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vision")
    write_photographs(folder / "valid.parquet", 9, 0)
    write_photographs(folder / "train.parquet", 7, 1)
    tokenizer = fit_patches(
        (np.asarray(Image.fromarray(image).resize((SIZE, SIZE))) for image in photographs(40, 2)),
        SIZE, CODES, PATCH, progress=False,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CODES, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.5, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save(folder / "model" / "tokenizer")
    sets = {
        "definitions": {"data": None},
        "negative": {"input": ["{data}/valid.parquet"], "pairs": {"task": "inversion"}},
        "edge": {
            "input": ["{data}/valid.parquet"],
            "pairs": {"task": "edges"},
            "examples": {"input": ["{data}/train.parquet"]},
        },
    }
    (folder / "sets.yaml").write_text(yaml.safe_dump(sets, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> VisualModel:
    return VisualModel.open(str(folder / "model"), "cpu")


@pytest.fixture(scope="module")
def encoded(folder, model):
    text = (folder / "sets.yaml").read_text().replace("{data}", str(folder))
    sets = parse_sets(yaml.safe_load(text), "sets.yaml")
    return [encode_set(entry, number, model.tokenizer, None, None, 4) for number, entry in enumerate(sets)]


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    words = ["vision", "--model", f"tiny={folder / 'model'}", "--sets", str(folder / "sets.yaml")]
    return [*words, "--define", f"data={folder}", "--output", str(output), *more]


def test_measures_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    truths, outputs = rng.integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(truths, outputs, strict=True)]
    ssim = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(truths, outputs, strict=True)]
    assert mean_psnr(outputs, truths) == pytest.approx(np.mean(psnr))
    assert mean_ssim(outputs, truths) == pytest.approx(np.mean(ssim))
    assert mean_psnr(truths, truths) == 60.0 and mean_ssim(truths, truths) == pytest.approx(1.0)


def test_mean_iou_by_hand():
    true = np.array([[[0, 0, 1, 3]]])
    predicted = np.array([[[0, 1, 1, 0]]])  # class 3 is void: its pixel does not count
    assert mean_iou(predicted, true, 4, 3) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert mean_iou(np.array([[[3, 3, 3, 3]]]), true, 4, 3) == 0.0  # drawing void is wrong, not left out
    assert mean_iou(true, true, 4, 3) == 1.0


def test_pixels_take_the_nearest_colour():
    image = CAMVID_PALETTE[[0, 4, 8, 11]].reshape(1, 2, 2, 3)
    noisy = np.clip(image.astype(int) + 7, 0, 255).astype(np.uint8)
    assert nearest_class(noisy, CAMVID_PALETTE).tolist() == [[[0, 4], [8, 11]]]
    assert measure("segmentation", noisy, image) == {"miou": 1.0}


def test_edge_f1_by_hand():
    truth, output = np.zeros((2, 1, 2, 2, 3), np.uint8)
    truth[0, 0], output[0, :, 0] = 255, 255  # two true, two found, one in common
    assert edge_f1(output, truth) == pytest.approx(0.5)
    assert edge_f1(truth, truth) == 1.0 and edge_f1(np.zeros_like(truth), truth) == 0.0


def test_the_mean_answer():
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (0, 100, 200)])
    assert (mean_answer("edges", images) == 100).all()
    classes = CAMVID_PALETTE[np.array([[[1]], [[1]], [[2]], [[VOID]], [[VOID]], [[VOID]]])]
    assert (mean_answer("segmentation", classes) == CAMVID_PALETTE[1]).all()  # a mean colour would be no class


def test_target_losses_are_those_of_labels_in_odd_images():
    """Losses of targets, by a loop over positions."""
    rng = np.random.default_rng(0)
    found = SentenceLosses(rng.random((3, 8 * TOKENS - 1)), rng.random((3, 8 * TOKENS - 1)) < 0.5)
    targets, by_pairs = [], {}
    for position in range(8 * TOKENS - 1):
        image = (position + 1) // TOKENS
        if image % 2:
            targets.append(found.losses_NL[:, position])
            by_pairs.setdefault(image // 2, []).append(found.losses_NL[:, position])
    result = summarise(found, TOKENS)
    assert result["target_loss"] == pytest.approx(np.mean(targets))
    assert result["loss_by_pairs"] == pytest.approx([np.mean(by_pairs[pairs]) for pairs in range(4)])
    assert result["last_target_loss"] == result["loss_by_pairs"][3]
    assert result["perplexity"] == pytest.approx(math.exp(found.losses_NL.mean()))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_losses_do_not_depend_on_the_batches(model, batch):
    sentences = np.random.default_rng(1).integers(0, CODES, (5, 4 * TOKENS))
    whole, split = (summarise(sentence_losses(model.lm, sentences, size), TOKENS) for size in (5, batch))
    for name, value in whole.items():
        assert split[name] == pytest.approx(value, rel=1e-6)
    logits = model.lm(torch.from_numpy(sentences)).logits[:, :-1]
    expected = functional.cross_entropy(logits.reshape(-1, CODES), torch.from_numpy(sentences)[:, 1:].reshape(-1))
    assert whole["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_unigram_losses():
    sentences, counts = np.array([[0, 1, 1, 0]]), np.array([1, 5])
    found = unigram_losses(sentences, counts)
    assert found.losses_NL[0] == pytest.approx([-math.log(6 / 8), -math.log(6 / 8), -math.log(2 / 8)])
    assert found.correct_NL.tolist() == [[True, True, False]]


def test_sentences_have_distinct_pairs():
    codes = np.arange(10 * 2 * TOKENS).reshape(10, 2, TOKENS)
    sentences = draw_sentences(codes, 4, 3, seed=5)
    pairs = sentences.reshape(3, 2, 4, 2, TOKENS)[..., 0, 0] // (2 * TOKENS)
    assert all(len(set(one.reshape(-1))) == 8 for one in pairs)
    assert not np.array_equal(pairs[0], pairs[1])
    assert np.array_equal(sentences, draw_sentences(codes, 4, 3, seed=5))
    with pytest.raises(VisionError, match="3 pairs do not make one sentence of 4"):
        draw_sentences(codes[:3], 4, 1, 0)


def test_no_query_is_shown_its_own_answer():
    rows = choose_examples(9, 9, 4, 7, among_queries=True)
    assert all(query not in row and len(set(row)) == 4 for query, row in enumerate(rows.tolist()))
    assert np.array_equal(choose_examples(9, 9, 2, 7, among_queries=True), rows[:, :2])  # prompts are nested
    assert any(query in row for query, row in enumerate(choose_examples(9, 9, 4, 7, among_queries=False).tolist()))


def test_prompts_hold_whole_pairs_and_then_the_query(encoded):
    """A prompt has (2k + 1) n codes."""
    negative, edge = encoded
    for shown in (negative, edge):
        for pairs in (0, 1, 3):
            prompts = prompts_of(negative, shown, pairs, seed=3)
            assert prompts.shape == (9, (2 * pairs + 1) * TOKENS)
            assert np.array_equal(prompts[:, -TOKENS:], negative.held_out_P2n[:, 0])
            for query, row in enumerate(examples_of(negative, shown, pairs, 3)):
                assert np.array_equal(prompts[query, :-TOKENS], shown.examples_E2n[row].reshape(-1))
    own = prompts_of(negative, negative, 3, seed=3).reshape(9, 7, TOKENS)
    answers = {answer.tobytes() for answer in negative.held_out_P2n[:, 1]}
    for query, prompt in enumerate(own):
        assert negative.held_out_P2n[query, 1].tobytes() not in {image.tobytes() for image in prompt}
        assert {image.tobytes() for image in prompt[1::2]} <= answers


def test_permuted_targets_keep_the_pictures_and_break_the_pairs(encoded):
    right = prompts_of(encoded[1], encoded[1], 3, 0).reshape(9, 7, TOKENS)
    wrong = prompts_of(encoded[1], encoded[1], 3, 0, permuted_targets=True).reshape(9, 7, TOKENS)
    assert np.array_equal(right[:, ::2], wrong[:, ::2])
    assert np.array_equal(right[:, [3, 5, 1]], wrong[:, [1, 3, 5]])


def test_generation_is_greedy_exact_in_length_and_needs_no_cache(model):
    """As without a cache, one code after the other."""
    prompts = np.random.default_rng(0).integers(0, CODES, (5, 3 * TOKENS))
    answers = generate_images(model.lm, prompts, TOKENS, 2, "")
    assert answers.shape == (5, TOKENS)
    assert np.array_equal(answers, generate_images(model.lm, prompts, TOKENS, 5, ""))
    rows = torch.from_numpy(prompts)
    with torch.no_grad():
        for _ in range(TOKENS):
            rows = torch.cat([rows, model.lm(rows, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert np.array_equal(answers, rows[:, 3 * TOKENS :].numpy())


def test_layout_makes_prompts():
    query, inputs, targets = np.array([[9]]), np.array([[[1], [3]]]), np.array([[[2], [4]]])
    assert make_prompts(query, inputs, targets).tolist() == [[1, 2, 3, 4, 9]]
    assert make_prompts(query, inputs[:, :0], targets[:, :0]).tolist() == [[9]]


def test_the_classifier_tells_tasks_apart():
    dark, light = np.random.default_rng(0).integers(0, 8, (2, 20, TOKENS)) + np.array([0, 12])[:, None, None]
    classifier = TaskClassifier({"dark": dark[:10], "light": light[:10]}, CODES)
    assert classifier.shares(dark[10:]) == {"dark": 1.0, "light": 0.0}
    assert classifier.shares(np.concatenate([dark[10:], light[10:]])) == {"dark": 0.5, "light": 0.5}


def test_the_command(folder, model, encoded, tmp_path, capsys):
    assert main(arguments(folder, tmp_path / "a", "--control", "true", "--pairs_in_prompt", "0", "2")) == 0
    table = capsys.readouterr().out
    assert "2 pairs" in table and "ceiling" in table and "resemble the targets" in table
    content = json.loads((tmp_path / "a" / "vision.json").read_text())
    found = content["models"]["tiny"]
    assert set(content["results"]) == {"negative", "edge"} == set(found["sets"])
    edge = found["sets"]["edge"]
    assert set(edge["prompting"]) == {"0", "2"} and edge["queries"] == 9
    truths, held_out = encoded[1].held_out.targets_PSS3, encoded[1].held_out
    assert edge["baselines"]["copy_input"] == measure("edges", held_out.inputs_PSS3, truths)
    assert edge["baselines"]["ceiling"] == measure(
        "edges", model.tokenizer.decode(encoded[1].held_out_P2n[:, 1]), truths
    )
    mean = np.broadcast_to(encoded[1].examples.targets_PSS3.mean(0).round().astype(np.uint8), truths.shape)
    assert edge["baselines"]["mean_target"] == measure("edges", mean, truths)
    assert len(edge["sentences"]["model"]["loss_by_pairs"]) == 4
    assert set(found["control"]["classes"]["edge"]["negative"]) == {"negative", "edge"}
    assert all((tmp_path / "a" / f"grid_{name}.png").stat().st_size > 1000 for name in ("negative", "edge"))
    more = ("--control", "true", "--pairs_in_prompt", "0", "2", "--batch_size", "4")
    assert main(arguments(folder, tmp_path / "b", *more)) == 0
    again = json.loads((tmp_path / "b" / "vision.json").read_text())["models"]["tiny"]
    assert again["sets"]["edge"]["prompting"] == edge["prompting"] and again["control"] == found["control"]


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({}, ["--define", "daten=x"], "no such definition"),
        ({}, ["--pairs_in_prompt", "-1"], "--pairs_in_prompt must be numbers of 0 or more"),
        ({}, ["--pairs_in_prompt", "9"], "negative: 8 example pairs, but a prompt needs 9"),
        ({}, ["--model", "other={folder}/model", "other=x"], "two models are called 'other'"),
        ({}, ["--model", "{folder}"], "neither a model"),
        ({"edge": {"input": ["{data}/nowhere"], "pairs": {"task": "edges"}}}, [], "nowhere is not there"),
        ({"edge": {"input": "{data}/valid.parquet", "pairs": {}}}, [], "edge.input: expected a list of files"),
        ({"edge": {"input": ["{data}/valid.parquet"]}}, [], "edge: pairs is missing"),
        ({"edge": {"input": ["{data}/valid.parquet"], "pairs": {"tusk": 1}}}, [], "unknown field 'tusk'"),
        ({"edge": {"input": ["{data}/valid.parquet"], "pairs": {"task": "single"}}}, [], "edge: expected pairs"),
        ({"edge": {"input": ["{data}/valid.parquet"], "pairs": {"task": "magic"}}}, [], "edge.pairs: "),
        ({"edge": 3}, [], "edge: expected a mapping, found int"),
    ],
)
def test_wrong_arguments_end_in_one_line(folder, tmp_path, capsys, change, words, message):
    sets = yaml.safe_load((folder / "sets.yaml").read_text()) | change
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(sets, sort_keys=False))
    command = arguments(folder, tmp_path / "out")
    command[command.index("--sets") + 1] = str(tmp_path / "sets.yaml")
    if words and words[0] in command:
        place = command.index(words[0])
        del command[place : place + 2]
    assert main([*command, *(word.format(folder=folder) for word in words)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("eval vision: ") and message in error


def test_a_text_model_is_refused(tiny_model):
    with pytest.raises(VisionError, match=r"has no visual tokenizer \(visual_tokenizer.json\); is it a text model"):
        VisualModel.open(str(tiny_model), "cpu")
