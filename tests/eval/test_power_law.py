"""The code of the laws: exact points, binomial noise, and the published predictions."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from eval.grid.power_law import CONSTANT, JOINT, LINEAR, OFFSET, POWER, Estimate, fit_law, power_law
from eval.grid.resampling import resample, seed_residuals

N = np.array([54_117, 140_149, 290_085, 743_557, 1_500_965], dtype=float)
D = np.array([2e3, 8e3, 32e3, 128e3, 512e3])


def exact(law, x, y):
    return fit_law(law, x, y, y[None])


def test_exact_points_give_back_their_constants():
    for alpha, x0 in ((0.223, 1.97e4), (0.018, 6.316e-74), (0.764, 107.0)):
        constants = exact(POWER, N, power_law(N, alpha, x0)).constants()
        assert constants["alpha"].value == pytest.approx(alpha, rel=1e-6)
        assert np.log(constants["x0"].value) == pytest.approx(np.log(x0), rel=1e-6)
    offset = exact(OFFSET, N, 0.07 + 40 * N**-0.5)
    assert [estimate.value for estimate in offset.constants().values()] == pytest.approx([0.07, 40, 0.5], rel=1e-5)
    linear = exact(LINEAR, N, 3 - 0.1 * np.log(N))
    assert [estimate.value for estimate in linear.constants().values()] == pytest.approx([3, -0.1], rel=1e-6)
    assert exact(CONSTANT, N, np.full(5, 0.3)).predict(1e9).value == pytest.approx(0.3)


def test_exact_points_of_two_variables():
    grid = np.array([(n, d) for n in N for d in D])
    y = 0.1 + 60 * grid[:, 0] ** -0.5 + 20 * grid[:, 1] ** -0.35
    fit = exact(JOINT, grid, y)
    assert [e.value for e in fit.constants().values()] == pytest.approx([0.1, 60, 0.5, 20, 0.35], rel=1e-4)
    assert fit.predict((4e6, 2e6)).value == pytest.approx(0.1 + 60 * 4e6**-0.5 + 20 * 2e6**-0.35, rel=1e-5)


def test_a_pure_law_is_an_offset_law_without_its_offset():
    y = power_law(N, 0.4, 1e4)
    fit = exact(OFFSET, N, y)
    assert fit.constants()["alpha"].value == pytest.approx(0.4, rel=1e-3)
    assert fit.constants()["E"].value < 1e-3 * y.min()
    assert fit.predict(4e6).value == pytest.approx(float(power_law(4e6, 0.4, 1e4)), rel=1e-3)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_fits_with_an_offset_are_no_worse_than_scipys_from_any_start(noise):
    rng = np.random.default_rng(3)
    grid = np.array([(n, d) for n in N for d in D])
    for law, x, y in (
        (OFFSET, N[:, None], 0.2 + 30 * N**-0.45),
        (JOINT, grid, 0.1 + 60 * grid[:, 0] ** -0.5 + 20 * grid[:, 1] ** -0.35),
    ):
        y = y * np.exp(noise * rng.standard_normal(len(y)))

        def residuals(theta, law=law, x=x, y=y):
            return np.log(law.predict(theta[None], x)[0]) - np.log(y)

        fit = exact(law, x, y)
        low, high = np.array([-30, *(-30, 1e-3) * law.variables]), np.array([5, *(30, 5) * law.variables])
        starts = rng.uniform(
            np.array([-4, *(-1, 0.05) * law.variables]), np.array([-1, *(9, 1) * law.variables]), (12, len(low))
        )
        best = min(2 * least_squares(residuals, start, bounds=(low, high)).cost for start in starts)
        assert (residuals(fit.theta_1P[0]) ** 2).sum() <= best * (1 + 1e-6) + 1e-12


def test_resamples_are_fitted_as_the_data_are():
    rng = np.random.default_rng(5)
    y = (0.2 + 30 * N**-0.45) * np.exp(0.05 * rng.standard_normal((20, 5)))
    together = OFFSET.fit(N[:, None], y, OFFSET.fit(N[:, None], y[:1])[0])
    alone = np.concatenate([OFFSET.fit(N[:, None], row[None]) for row in y])
    assert OFFSET.predict(together, N[:, None]) == pytest.approx(OFFSET.predict(alone, N[:, None]), rel=1e-3)


def test_intervals_cover_alpha_under_binomial_noise():
    simulations, images, alpha, x0 = 500, 2289, 0.3, 3e3
    rng = np.random.default_rng(18)
    shares = np.tile(power_law(N, alpha, x0), simulations)
    wrong = rng.random((images, simulations * 5), dtype=np.float32) < shares
    cells = list(wrong.T[:, None])  # one run of each cell
    values = np.array([cell.mean() for cell in cells])
    resampled = resample([np.array([value]) for value in values], 2000, 0, cells)
    covered_alpha = covered_prediction = 0
    for first in range(0, len(values), 5):
        fit = fit_law(POWER, N, values[first : first + 5], resampled[:, first : first + 5])
        covered_alpha += fit.constants()["alpha"].covers(alpha)
        covered_prediction += fit.predict(4e6).covers(float(power_law(4e6, alpha, x0)))
    assert 0.90 <= covered_alpha / simulations <= 0.98
    assert 0.90 <= covered_prediction / simulations <= 0.98


def test_images_are_resampled_together():
    """Two cells that get the same images wrong move together; their ratio does not move at all."""
    rng = np.random.default_rng(0)
    wrong = rng.random((1, 400)) < 0.3
    other = rng.random((1, 400)) < 0.3
    moved = resample([cell.mean(axis=1) for cell in (wrong, wrong, other)], 500, 1, [wrong, wrong, other])
    assert np.array_equal(moved[:, 0], moved[:, 1]) and np.corrcoef(moved[:, 0], moved[:, 2])[0, 1] < 0.3
    share = wrong.mean()
    assert moved[:, 0].std() == pytest.approx(np.sqrt(share * (1 - share) / 400), rel=0.15)


def test_seeds_move_every_cell_as_much_as_seeds_do():
    rng = np.random.default_rng(0)
    several = [np.exp(0.1 * rng.standard_normal(3)) for _ in range(200)]
    moved = resample([*several, np.array([2.0])], 2000, 1)
    assert np.log(moved[:, -1]).std() == pytest.approx(0.1, rel=0.1)  # one run
    assert np.log(moved[:, 0]).std() == pytest.approx(0.1 / np.sqrt(3), rel=0.1)  # the mean of three
    assert len(seed_residuals([np.array([1.0]), np.array([2.0])])) == 0
    assert np.array_equal(resample([np.array([2.0])], 3, 0), np.full((3, 1), 2.0))


def test_the_usable_forms_give_the_published_predictions():
    assert 100 * power_law([43.09e6, 281.9e6, 505.5e6, 1e9], 0.223, 1.97e4)[:3] == pytest.approx(
        [18.0, 11.8, 10.4], abs=0.06
    )
    data = 100 * power_law([0.75e6, 3.75e6, 7.5e6, 15e6, 30e6], 0.3271, 1.84e5)
    assert data == pytest.approx([63.2, 37.3, 29.7, 23.7, 18.9], abs=0.06)
    hours = power_law([142, 285, 760, 1000], 0.764, 4.45e4)  # per cent
    assert hours == pytest.approx([80.7, 47.4, 22.4, 18.2], abs=0.15)
    flat = 100 * power_law([22.5e6, 104e6, 336e6, 682e6], 0.018, 6.316e-74)
    assert flat == pytest.approx([3.55, 3.45, 3.38, 3.34], abs=0.01)
    assert power_law(30e6, -0.3271, 1.84e5) > power_law(15e6, -0.3271, 1.84e5) > 1  # as printed: errors grow with data


def test_flat_data_are_said_to_be_flat():
    rng = np.random.default_rng(0)
    flat = 0.3 * np.exp(0.02 * rng.standard_normal((201, 5)))
    falling = power_law(N, 0.3, 3e3) * np.exp(0.02 * rng.standard_normal((201, 5)))
    assert fit_law(POWER, N, flat[0], flat[1:]).flat() == ["alpha"]
    assert fit_law(POWER, N, falling[0], falling[1:]).flat() == []
    assert fit_law(OFFSET, N, falling[0], falling[1:]).flat() == []
    assert fit_law(OFFSET, N, flat[0], flat[1:]).flat() == ["alpha"]
    assert Estimate(1.0, 0.5, 2.0).covers(0.5) and not Estimate(1.0, 0.5, 2.0).covers(2.1)


@pytest.mark.parametrize(
    ("law", "x", "y", "message"),
    [
        (OFFSET, N[:2], [0.3, 0.2], "the offset law needs 3 points, there are 2"),
        (POWER, N[:2], [0.3, 0.0], "must be greater than 0"),
        (JOINT, N, [0.5] * 5, "has 2 variables, the points have 1"),
    ],
)
def test_what_cannot_be_fitted(law, x, y, message):
    with pytest.raises(ValueError, match=message):
        exact(law, x, np.array(y))
