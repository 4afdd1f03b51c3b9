"""Means and slopes over tasks in sources: against hand computation and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apd.tables.nested import Fit, holm, mean_over

SIZES = [10, 8, 6, 4, 4, 2, 1, 1, 1, 1, 1, 1]  # forty tasks of twelve sources


def sources_of(sizes):
    return [i for i, size in enumerate(sizes) for _ in range(size)]


def test_tasks_of_their_own_sources_have_students_interval():
    y = np.array([1.0, 2.5, -0.5, 4.0, 3.0])
    found, _ = mean_over(y, list("abcde"))
    interval = stats.t.interval(0.95, 4, y.mean(), stats.sem(y))
    assert found[:3] == pytest.approx((y.mean(), *interval))
    assert found.p == pytest.approx(stats.ttest_1samp(y, 0).pvalue) and found.df == pytest.approx(4)


def test_sources_of_one_size_have_students_interval_over_their_means():
    y = np.array([[1.0, 2.0, 4.0], [0.0, -1.0, 0.5], [3.0, 5.0, 3.5], [2.0, 2.0, 1.0]])
    found, _ = mean_over(y.ravel(), np.repeat(list("abcd"), 3))
    means = y.mean(axis=1)
    interval = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert found[:3] == pytest.approx((means.mean(), *interval)) and found.df == pytest.approx(3)


def test_reml_of_sources_of_one_size_is_the_analysis_of_variance():
    """Its estimate of the variance between sources: (MS between - MS within) / size."""
    y = np.array([[1.0, 2.0, 4.0], [0.0, -1.0, 0.5], [3.0, 5.0, 3.5], [2.0, 2.0, 1.0]])
    within = y.var(axis=1, ddof=1).mean()
    between = y.mean(axis=1).var(ddof=1) - within / 3
    _, fit = mean_over(y.ravel(), np.repeat(list("abcd"), 3))
    assert fit.correlation == pytest.approx(between / (between + within), abs=1e-4)


def test_weights_are_those_of_the_random_intercept():
    """A source weighs 1 / (between + within / tasks)."""
    rng = np.random.default_rng(3)
    sources = sources_of([6, 3, 1, 1, 2])
    y = rng.normal(size=13) + 2 * rng.normal(size=5)[sources]
    found, fit = mean_over(y, sources)
    r = fit.correlation
    assert 0 < r < 1
    counts = np.bincount(sources)
    weights = 1 / (r + (1 - r) / counts)
    means = np.bincount(sources, y) / counts
    assert found.value == pytest.approx(weights @ means / weights.sum())


def test_a_slope_over_own_sources_is_least_squares_with_a_robust_error():
    """CR2 of single tasks is HC2: residual^2 / (1 - leverage)."""
    x, y = np.array([1.0, 2.0, 3.0, 5.0, 8.0, 9.0]), np.array([2.0, 1.0, 4.0, 3.0, 9.0, 7.0])
    X = np.stack([np.ones(6), x], axis=1)
    found = Fit(y, X, list("abcdef")).estimate([0, 1])
    line = stats.linregress(x, y)
    assert found.value == pytest.approx(line.slope)
    hat = X @ np.linalg.inv(X.T @ X) @ X.T
    residuals = y - hat @ y
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    variance = (weights**2 * residuals**2 / (1 - hat.diagonal())).sum()
    half = stats.t.ppf(0.975, found.df) * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((line.slope - half, line.slope + half))
    assert 1 < found.df < 4


def test_degrees_of_freedom_are_satterthwaites():
    """2 E[v]^2 / Var[v] of the variance estimate v, by simulation under the model."""
    sources = sources_of([7, 3, 2, 1, 1])
    X = np.ones((14, 1))
    _, fit = mean_over(np.random.default_rng(0).normal(size=14), sources)
    fit._weigh(0.3)
    df = fit._cr2(np.array([1.0]))[1]
    rng, drawn = np.random.default_rng(1), []
    for y in rng.multivariate_normal(np.zeros(14), fit.covariance, size=1500):
        fit.residuals = y - X @ (fit.bread @ X.T @ fit.weights @ y)
        drawn.append(fit._cr2(np.array([1.0]))[0])
    assert 2 * np.mean(drawn) ** 2 / np.var(drawn) == pytest.approx(df, rel=0.15)
    assert np.mean(drawn) == pytest.approx(fit.bread[0, 0], rel=0.05)  # unbiased under the model


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_intervals_hold_the_truth_in_95_of_100_simulations(between):
    """Also where sources differ in what the model takes for one: the largest is twice as noisy."""
    sources = np.array(sources_of(SIZES))
    rng, held = np.random.default_rng(5), {"mean": 0, "slope": 0}
    x = rng.normal(size=12)[sources] + rng.normal(size=40)
    X = np.stack([np.ones(40), x], axis=1)
    for _ in range(120):
        noise = rng.normal(size=40) * (1 + (sources == 0)) + between * rng.normal(size=12)[sources]
        low, high = mean_over(0.5 + noise, sources)[0][1:3]
        held["mean"] += low <= 0.5 <= high
        low, high = Fit(0.5 + 0.7 * x + noise, X, sources).estimate([0, 1])[1:3]
        held["slope"] += low <= 0.7 <= high
    for name, count in held.items():  # three standard errors of 120 draws are 6 points
        assert count / 120 >= 0.89, (name, count)


def test_one_source_is_taken_task_by_task():
    y = [1.0, 2.0, 4.0]
    found, fit = mean_over(y, ["a"] * 3)
    assert fit.by_task and found == mean_over(y, "abc")[0]
    assert not mean_over(y, "aab")[1].by_task


def test_tasks_that_do_not_vary_have_no_width():
    found, _ = mean_over([2.0, 2.0, 2.0], "aab")
    assert found[:4] == (2.0, 2.0, 2.0, 0.0) or found.high - found.low < 1e-6
    with pytest.raises(ValueError):
        mean_over([2.0], "a")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_is_no_less_than_what_it_was(ps):
    adjusted = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted))
    assert [q for _, q in sorted(zip(ps, adjusted))] == sorted(adjusted)


@pytest.mark.parametrize(("sources", "columns"), [("aab", 2), ("aab", 3), ("aa", 2), ("a", 2)])
def test_there_are_more_sources_than_columns(sources, columns):
    X = np.vander(np.arange(1.0, len(sources) + 1), columns)
    with pytest.raises(ValueError, match="too few sources"):
        Fit(np.ones(len(sources)), X, sources)
