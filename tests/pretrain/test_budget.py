"""`python -m pretrain plan --hours`: from what is at hand to a configuration, by stated rules."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import pytest
import yaml

from arch.pangu_pi.accounting import count_parameters
from arch.pangu_pi.load_config import load_model_config
from pretrain import __main__ as front_door
from pretrain.command_line import parse
from pretrain.errors import ConfigurationError
from pretrain.planning.budget import Run, make_budget
from pretrain.planning.budget_report import run as report
from pretrain.planning.budget_run import settle
from pretrain.planning.budget_yaml import reasons, run_yaml
from pretrain.planning.options import BudgetConfig, parse_count
from pretrain.planning.scaling_law import BESIROGLU, HOFFMANN, batch_tokens, effective_tokens, learning_rate
from pretrain.planning.shape_rules import VOCABULARY_SHARE, shape, shapes
from tests.pretrain.conftest import ROOT

PRO = ROOT / "configs/pangu_pi/models/pangu_pi_1b_pro.yaml"


def options(**changes) -> BudgetConfig:
    return BudgetConfig(**{"hours": 12, "gpus": 8, "gpu": "h100-80", **changes})


def best(**changes) -> Run:
    return make_budget(options(**changes)).runs[0]


def test_the_rules_make_the_shapes_of_the_paper():
    paper = yaml.safe_load(PRO.read_text())
    assert {name: shape(1792)[name] for name in paper if name != "max_position_embeddings"} == {
        name: value for name, value in paper.items() if name != "max_position_embeddings"
    }
    wide = shape(2048, vocabulary=48_000)
    assert (wide["num_hidden_layers"], wide["num_attention_heads"]) == (22, 16)  # 1.5B Pro
    donor = yaml.safe_load((ROOT / "configs/pangu_pi/models/pangu_pi_7b.yaml").read_text())
    made = shape(4096, vocabulary=donor["vocab_size"])
    assert all(made[name] == donor[name] for name in ("num_hidden_layers", "intermediate_size", "num_attention_heads"))


def test_every_shape_can_be_built_without_warnings_and_grows(monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("transformers.configuration_utils"), "warning", warnings.append)
    found = list(shapes())
    assert not warnings
    sizes = [count_parameters(model).total for _, model in found]
    assert sizes == sorted(sizes) and sizes[0] < 2e6 and sizes[-1] > 6e9
    shares = {model.hidden_size: count_parameters(model).embedding_and_head_share for _, model in found}
    assert all(share < VOCABULARY_SHARE for width, share in shares.items() if width > 192)


def test_the_laws_give_what_their_papers_say():
    # Chinchilla itself: 70 B parameters, 1.4 T tokens, and about 20 tokens a parameter at the optimum of the refit.
    assert HOFFMANN(70e9, 1.4e12) == pytest.approx(1.69 + 0.083 + 0.163, abs=5e-3)
    flops = 5.76e23
    sizes = [10 ** (9 + 0.01 * step) for step in range(300)]
    optimum = min(sizes, key=lambda size: BESIROGLU(size, flops / (6 * size)))
    assert 15 < flops / (6 * optimum) / optimum < 30
    # DeepSeek LLM 7B: 2 T tokens; the paper's own numbers are 2304 x 4096 tokens and 4.2e-4.
    work = 2e12 * 3 * 2 * 6.5e9
    assert batch_tokens(work) == pytest.approx(2304 * 4096, rel=0.25)
    assert learning_rate(work) == pytest.approx(4.2e-4, rel=0.25)


def test_repeated_text_is_worth_less_and_less():
    assert effective_tokens(5, None) == effective_tokens(5, 10) == 5
    assert effective_tokens(40, 10) == pytest.approx(40, rel=0.08)  # four passes are nearly fresh
    assert effective_tokens(1e6, 10) == pytest.approx(10 * 16.39)  # a bound


def test_the_run_takes_the_time_and_no_more():
    for hours in (0.5, 12, 200):
        budget = make_budget(options(hours=hours))
        available = hours * 3600 * 0.95 * 8 * 989e12 * 0.4
        assert all(run.flops == pytest.approx(available) for run in budget.runs)
    assert best(hours=12).parameters > best(hours=1).parameters
    assert make_budget(options(), recomputation=True).runs[0].flops == pytest.approx(
        12 * 3600 * 0.95 * 8 * 989e12 * 0.3
    )


def test_text_that_would_be_repeated_gets_a_second_round_and_a_smaller_model_a_longer_one():
    free, scarce = best(), best(tokens="1B")
    assert (free.rounds, scarce.rounds) == (1, 2)
    assert scarce.flops == pytest.approx(free.flops)
    assert scarce.tokens * scarce.parameters < free.tokens * free.parameters
    said = reasons(make_budget(options(tokens="1B")), scarce, None, None)
    assert "text is the limit" in said["steps"]
    assert "time is the limit" in reasons(make_budget(options(tokens="10T")), best(tokens="10T"), None, None)["steps"]


def test_batches_are_shared_by_all_ranks_and_hold_several_sequences():
    for ranks in (1, 8, 512):
        run = best(nodes=ranks // 8 or 1, gpus=min(ranks, 8))
        assert run.batch % ranks == 0 and run.wanted_batch <= 2_000_000
    small = best(hours=0.005, gpus=1, gpu="l4-24")
    assert small.sequence < 2048 and small.wanted_batch / small.sequence >= 8
    crowd = options(hours=0.05, nodes=64)
    assert "512 ranks need" in reasons(make_budget(crowd), make_budget(crowd).runs[0], None, None)["batch"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("10B", 1e10), ("300M", 3e8), ("1.5t", 1.5e12), ("4k", 4000), ("5_000", 5000), ("5,000,000", 5e6)],
)
def test_counts_as_people_write_them(text, value):
    assert parse_count(text, "tokens") == value


@pytest.mark.parametrize("text", ["", "B", "2,5G", "1,00", "ten", "-3", "0", "nan", "inf", "1e999"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ConfigurationError, match="tokens is"):
        parse_count(text, "tokens")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hours": 0}, "hours is 0"),
        ({"hours": math.nan}, "hours is nan"),
        ({"reserve": 1}, "reserve is 1"),
        ({"price": -1}, "price is -1"),
        ({"write": "mine.json"}, "must name a file that ends in .yaml"),
        ({"gpus": 0}, "gpus is 0"),
        ({"parameters": "none"}, "parameters is"),
    ],
)
def test_impossible_budgets_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        options(**changes)


def test_the_time_must_be_enough_for_a_step():
    with pytest.raises(ConfigurationError, match="too short for a step"):
        make_budget(options(hours=1e-12))


def test_shards_give_tokens_and_vocabulary(corpus):
    budget = make_budget(options(shards=[str(corpus["train"])]))
    assert budget.text.tokens and all(run.model.vocab_size == budget.text.vocabulary for run in budget.runs)
    with pytest.raises(ConfigurationError, match="shards: nowhere"):
        make_budget(options(shards=["nowhere"]))


def test_a_run_that_does_not_fit_becomes_a_smaller_one(tmp_path):
    """What time pays for is larger than what a tenth of a gigabyte holds."""
    tight = options(hours=0.02, gpus=1, gpu="l4-24", memory_gb=0.06, headroom=0.0)
    settled = settle(tight)
    wanted = make_budget(tight).runs[0]
    assert settled.run.parameters < wanted.parameters == settled.too_large
    assert settled.choice.peak.total < 0.06e9
    assert "memory is the limit" in reasons(settled.budget, settled.run, settled.choice, settled.too_large)["model"]


def test_a_report_knows_one_device_and_one_setting(monkeypatch, tmp_path):
    """A CPU's speed is measured once: a second measurement is another number, and two in one report do not agree."""
    measured = iter([0.5, 0.1] * 2)
    monkeypatch.setattr("pretrain.planning.accelerators.peak_tflops", lambda *_: (next(measured), "measured"))
    file = tmp_path / "with space" / "mine.yaml"
    made = options(hours=1e-3, gpus=1, gpu="cpu", parameters="1M", write=str(file))
    settled = settle(made)
    assert settled.plan.device is settled.budget.device
    assert (settled.plan.config.engine.zero_stage, settled.plan.config.engine.activation_checkpointing) == (
        settled.choice.stage,
        settled.choice.checkpointing,
    )
    said = report(made)
    assert "own setting" not in said and f"--config '{file}'" in said


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pretrain", "plan", *arguments])
    return front_door.main()


def test_the_command_writes_a_configuration_that_train_reads(monkeypatch, tmp_path, capsys):
    file = tmp_path / "made" / "mine.yaml"
    words = [
        "--hours",
        "0.01",
        "--gpu",
        "l4-24",
        "--gpus",
        "2",
        "--parameters",
        "1M",
        "--price",
        "2",
        "--write",
        str(file),
    ]
    assert call(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    assert "device hours" in said and "not predicted" in said and f"--config {file}" in said
    config, _ = parse(["--config", str(file)])
    shape_of_model = load_model_config(file.with_name("mine_model.yaml"))
    assert count_parameters(shape_of_model).total < 2e6
    assert config.batch.size % (2 * config.batch.micro_size) == 0 and config.task.model_config.hidden_size == 128
    assert file.read_text().count("# ") > 8  # every choice has its reason
    assert call(monkeypatch, *words) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hours", "0"], "hours is 0"),
        (["--hours=1", "--gpu", "a100"], "a100-80"),
        (["--hours=1", "--tokens", "ten"], "such as 300M"),
        (["--hours=1", "--tokes", "1B"], "did you mean 'tokens'"),
        (["--hours=1", "--shards", "nowhere"], "nowhere: no such directory"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("plan: ") and error.count("\n") == 1


def test_a_path_with_odd_characters_stays_one_value(tmp_path):
    odd = options(shards=[], output="runs/a: b #c")
    budget = make_budget(odd)
    assert yaml.safe_load(run_yaml(budget, budget.runs[0], "m: odd.yaml", 1))["output"] == "runs/a: b #c"
    assert Path(yaml.safe_load(run_yaml(budget, budget.runs[0], "m: odd.yaml", 1))["task"]["init_args"]["model"]).name
