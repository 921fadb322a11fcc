"""Schedules and the batch rule as published."""

import logging
from itertools import pairwise

import pytest

from pretrain.config import BatchConfig, OptimizerConfig, TrainConfig
from pretrain.engine import Engine
from pretrain.errors import ConfigurationError
from pretrain.rate_rules import BatchRule, WidthRule, warn_of_large_batch
from pretrain.schedule import ScheduleConfig
from tests.pretrain.toy import ToyTask


def test_cosine_rises_linearly_peaks_and_ends_at_the_final_ratio():
    factors = [ScheduleConfig(warmup_steps=10, final_ratio=0.1).factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(factors) == 1.0 and factors[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[10 + 45] == pytest.approx(0.55, abs=0.02)  # half-way between peak and end


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_wsd_is_flat_until_the_decay(shape):
    schedule = ScheduleConfig(name="wsd", warmup_steps=5, decay_fraction=0.2, decay_shape=shape, final_ratio=0.0)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert set(factors[5:80]) == {1.0} and factors[80] == 1.0 and factors[-1] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(factors[80:]))


def test_constant_and_default_warmup_fraction():
    schedule = ScheduleConfig(name="constant", warmup_fraction=0.03)
    assert schedule.factor(0, 1000) == pytest.approx(1 / 30) and schedule.factor(30, 1000) == 1.0


@pytest.mark.parametrize(("exponent", "size"), [(400.0, 4096), (-400.0, 4096), (1e40, 64), (-1.0, 0)])
def test_a_rule_that_makes_no_rate_says_so(exponent, size):
    with pytest.raises(ConfigurationError, match=r"optimizer\.lr is null, and optimizer\.width_rule makes (0|inf) of"):
        WidthRule(exponent=exponent).learning_rate(size)


def test_square_root_batch_rule():
    rule = BatchRule()
    assert rule.learning_rate(2_000_000) == pytest.approx(2e-4)
    assert rule.learning_rate(1_000_000) * 2**0.5 == pytest.approx(2e-4)
    assert rule.learning_rate(491_520) == pytest.approx(9.9e-5, rel=0.01)  # docs/methods/tiny_lm.md: batch and rate
    assert BatchRule(exponent=0).learning_rate(123) == 2e-4
    assert BatchRule(exponent=1).learning_rate(1_000_000) == pytest.approx(1e-4)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 1.0])
def test_doubling_the_batch_multiplies_the_rate_by_two_to_the_exponent(exponent):
    rule = BatchRule(exponent=exponent)
    assert rule.learning_rate(rule.anchor_batch_tokens) == rule.anchor_lr
    for tokens in (1_000, 491_520, 1_999_999):
        assert rule.learning_rate(2 * tokens) / rule.learning_rate(tokens) == pytest.approx(2**exponent)


def test_warns_at_four_million_tokens(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_large_batch(3_999_999)
        assert not caplog.records
        warn_of_large_batch(4_000_000)
    assert "4 M tokens" in caplog.text


@pytest.mark.parametrize(("given", "expected"), [(None, 2e-4 * 2**0.5), (1e-3, 1e-3)])
def test_an_engine_warns_whether_or_not_the_rule_sets_its_rate(caplog, given, expected):
    class Wide(ToyTask):
        def units_per_sample(self):
            return 1_000_000, "tokens"

    config = TrainConfig(task=Wide(), output="", steps=1, batch=BatchConfig(4, 4), optimizer=OptimizerConfig(lr=given))
    with caplog.at_level(logging.WARNING, logger="pretrain"):
        assert Engine._peak_lr(config, config.task) == pytest.approx(expected)
    assert caplog.text.count("global batch of 4,000,000 tokens") == 1


def test_beside_muon_the_rate_falls_with_the_width():
    class Wide(ToyTask):
        default_optimizer = "muon"

        def residual_width(self):
            return 512

    peak = lambda task, **given: Engine._peak_lr(  # noqa: E731
        TrainConfig(task=task, output="", steps=1, optimizer=OptimizerConfig(**given)), task
    )
    assert peak(Wide()) == pytest.approx(WidthRule().anchor_lr / 2)
    assert peak(Wide(), name="adamw") == pytest.approx(BatchRule().learning_rate(32))
    assert peak(Wide(), lr=0.1) == 0.1
    with pytest.raises(ConfigurationError, match=r"optimizer\.lr is null, but this task's model has no width"):
        peak(ToyTask(), name="muon")
