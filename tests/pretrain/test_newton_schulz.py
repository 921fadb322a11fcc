"""Orthogonalisation: against singular values in float64, in both types, at every shape, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.accounting import count_flops
from arch.pangu_pi.load_config import load_model_config
from pretrain.config import OptimizerConfig
from pretrain.optimizers.newton_schulz import COEFFICIENTS, MARGIN, orthogonalisation_flops, orthogonalise, product_type
from pretrain.optimizers.optimizer import parameter_groups
from tests.processor import processor_with

SHAPES = [(24, 24), (24, 64), (64, 24), (3, 40), (130, 129), (129, 200), (1, 7)]
"""Square, wide, tall; with one block and with two."""
USUAL = ((3.4445, -4.7750, 2.0315),) * 5
MODELS = Path(__file__).resolve().parents[2] / "configs" / "pangu_pi" / "models"


def polynomials(values: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    for a, b, c in coefficients:
        values = a * values + b * values**3 + c * values**5
    return values


def spread(rows: int, columns: int, seed: int, lowest: float = 0.01) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix with singular values from 1 to `lowest`, evenly in their logarithm, and what it is made of: float64."""
    generator = torch.Generator().manual_seed(seed)
    gauss = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(gauss, full_matrices=False)
    values = torch.logspace(0, torch.tensor(lowest).log10().item(), min(rows, columns), dtype=torch.float64)
    return left * values @ right, left, values, right


@pytest.mark.parametrize("steps", COEFFICIENTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_follow_the_polynomials_and_vectors_stay(shape, steps):
    """fp32 rounds R by 2^-24 of its largest value, and so the result of a singular value s by 2^-24 / 2 s^2, or more
    where rows are long: a thousandth at s = 0.01."""
    matrix, left, values, right = spread(*shape, seed=1)
    bound = MARGIN * float((values**8).sum() ** (1 / 8))
    expected = left * polynomials(values / bound, COEFFICIENTS[steps]) @ right
    for scale in (1.0, 1e-15, 1e15):
        found = orthogonalise((scale * matrix).float()[None], steps)[0]
        assert float((found - expected).norm()) < 3e-3 * min(shape) ** 0.5
    assert expected.norm() > 0.4 * min(shape) ** 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_is_as_orthogonal_as_its_rounding_allows(shape):
    """Of a well conditioned matrix, whose singular values all end where the polynomials are flat."""
    matrix, left, _, right = spread(*shape, seed=2, lowest=0.2)
    found = orthogonalise(matrix.bfloat16()[None], 5)[0]
    assert found.dtype == torch.bfloat16
    values = torch.linalg.svdvals(found.double())
    assert values.min() > 0.8 and values.max() < 1.2
    assert float((found.double() - left @ right).norm()) < 0.2 * min(shape) ** 0.5


def test_a_batch_is_what_its_matrices_are_one_by_one():
    for shape in SHAPES:
        batch = torch.stack([spread(*shape, seed=seed)[0] * 10.0**seed for seed in range(3)]).float()
        single = torch.cat([orthogonalise(matrix[None], 5) for matrix in batch])
        torch.testing.assert_close(orthogonalise(batch, 5), single, rtol=0, atol=1e-3)
        tall = orthogonalise(batch.mT.contiguous(), 5).mT
        torch.testing.assert_close(tall, single, rtol=0, atol=1e-3)


def test_zeros_stay_zero_beside_others():
    batch = torch.stack([torch.zeros(8, 8), torch.eye(8)])
    result = orthogonalise(batch, 5)
    assert not result[0].any() and result[1].diagonal().min() > 0.8


def test_from_its_lowest_value_on_everything_ends_near_one_and_closer_than_by_the_usual_coefficients():
    for steps, lowest, error in ((4, 0.003, 0.22), (5, 0.001, 0.135)):
        values = torch.logspace(torch.tensor(lowest).log10().item(), 0, 10001, dtype=torch.float64)
        ends = polynomials(values, COEFFICIENTS[steps])
        assert (ends - 1).abs().max() < error
        assert polynomials(values * 1.009, COEFFICIENTS[steps]).max() < 1 + error  # the margin is a real one
        beside = polynomials(values, USUAL)
        assert (ends - 1).square().mean() < (0.9 if steps == 4 else 0.25) * (beside - 1).square().mean()


@pytest.mark.parametrize("steps", COEFFICIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flops_are_counted_right(steps, dtype):
    for shape in SHAPES:
        with FlopCounterMode(display=False) as counter:
            orthogonalise(torch.ones(2, *shape, dtype=dtype), steps)
        assert counter.get_total_flops() == 2 * orthogonalisation_flops(*shape, steps, dtype)


def test_at_1b_it_costs_less_than_two_percent_of_a_step():
    """2 M tokens, as configs/pangu_pi/runs/1b_pro.yaml has them; 1 % of that batch's arithmetic even in bf16."""
    config = load_model_config(MODELS / "pangu_pi_1b.yaml")
    with torch.device("meta"):
        model = PanguPiForCausalLM(config)
    groups = parameter_groups(model, model.no_weight_decay(), OptimizerConfig(name="muon"))
    matrices = [parameter.shape for group in groups if group.use_muon for parameter in group.parameters]
    step = 1024 * 2048 * count_flops(config, 2048).train_per_token
    shares = {
        dtype: sum(orthogonalisation_flops(*shape, OptimizerConfig().muon_steps, dtype) for shape in matrices) / step
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(matrices) == 12 * (4 + 3 + 2)
    assert 0.001 < shares[torch.float32] < shares[torch.bfloat16] < 0.02


def test_the_type_is_never_an_emulated_one():
    for answer, expected in (("1", torch.bfloat16), ("0", torch.float32)):
        with processor_with(TEST_BF16=answer):
            assert product_type(torch.device("cpu")) == expected
