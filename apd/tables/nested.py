"""Means and slopes over tasks that are nested in sources, such as parts of one data set.

The model is y = X b + u[source] + e, with a random intercept u of each source. The share of its
variance is estimated by REML (restricted maximum likelihood; Laird and Ware 1982), and decides how
much a source with many tasks weighs. Intervals and tests do not trust the model: they are
cluster-robust over sources, with the bias-reduced linearisation (CR2) and the Satterthwaite degrees
of freedom of Bell and McCaffrey 2002, as Pustejovsky and Tipton 2018 (Journal of Business and
Economic Statistics 36) give them for weighted fits. They hold for few sources of unequal size.
Where each task has a source of its own, or all sources have as many tasks, a mean has Student's
t-interval over sources.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number, its 95 % interval, and its two-sided test against zero.

    Attributes:
        low, high: ends of the interval.
        p: of the test.
        df: degrees of freedom of Student's t, which interval and test are based on.
    """

    value: float
    low: float
    high: float
    p: float
    df: float


class Fit:
    """The model, fitted.

    Args:
        y: (n,), one number a task.
        X: (n, k) of full rank.
        sources: of each task. From one source alone, the variation between sources cannot be
            estimated: then each task counts as a source (``by_task``).

    Raises:
        ValueError: not more sources than columns of X.
    """

    def __init__(
        self, y: Sequence[float] | np.ndarray, X: np.ndarray, sources: Sequence[Hashable]
    ) -> None:
        self.y, self.X = np.asarray(y, float), np.asarray(X, float)
        self.by_task = len(set(sources)) == 1
        names = list(range(len(self.y))) if self.by_task else list(sources)
        self.same = np.array([[a == b for b in names] for a in names], float)
        self.groups = [np.flatnonzero(row) for row in np.unique(self.same, axis=0)]
        if len(self.groups) <= self.X.shape[1]:
            raise ValueError("there are too few sources")
        self.correlation = self._reml()
        self._weigh(self.correlation)

    def estimate(self, contrast: Sequence[float]) -> Estimate:
        """The estimate of ``contrast`` (k,) times the coefficients."""
        from scipy.stats import t  # slow to import

        weights = np.asarray(contrast, float)
        value, (variance, df) = float(weights @ self.beta), self._cr2(weights)
        if variance <= 1e-18 * max(1.0, value**2):  # the tasks do not vary
            return Estimate(value, value, value, float(value == 0), df)
        error = variance**0.5
        half = float(t.ppf(0.975, df)) * error
        p = 2 * float(t.sf(abs(value) / error, df))
        return Estimate(value, value - half, value + half, p, df)

    def _weigh(self, correlation: float) -> float:
        """Generalised least squares, where tasks of one source have this correlation.

        Returns:
            -2 times the restricted log-likelihood, but for a constant.
        """
        n, k = self.X.shape
        self.covariance = correlation * self.same + (1 - correlation) * np.eye(n)
        self.weights = np.linalg.inv(self.covariance)
        information = self.X.T @ self.weights @ self.X
        self.bread = np.linalg.inv(information)
        self.beta = self.bread @ self.X.T @ self.weights @ self.y
        self.residuals = self.y - self.X @ self.beta
        squares = max(float(self.residuals @ self.weights @ self.residuals), 1e-300)
        logs = [np.linalg.slogdet(m)[1] for m in (self.covariance, information)]
        return (n - k) * np.log(squares) + sum(logs)

    def _reml(self) -> float:
        """The correlation of tasks of one source, at least 0."""
        if len(self.groups) == len(self.y):
            return 0.0
        from scipy.optimize import minimize_scalar  # slow to import

        minimum = minimize_scalar(self._weigh, bounds=(0, 0.999), method="bounded")
        return float(minimum.x) if minimum.fun < self._weigh(0.0) else 0.0

    def _cr2(self, contrast: np.ndarray) -> tuple[float, float]:
        """The variance of ``contrast`` times the coefficients, and its degrees of freedom."""
        hat = self.X @ self.bread @ self.X.T @ self.weights
        variance, errors = 0.0, []
        for rows in self.groups:
            x, block = self.X[rows], self.covariance[np.ix_(rows, rows)]
            root = np.linalg.cholesky(block).T
            middle = root @ (block - x @ self.bread @ x.T) @ root.T
            adjusted = root.T @ _inverse_root(middle) @ root
            weight = adjusted @ np.linalg.solve(block, x) @ self.bread @ contrast
            variance += float(weight @ self.residuals[rows]) ** 2
            errors.append((np.eye(len(self.y)) - hat)[rows].T @ weight)
        spread = np.array(errors) @ self.covariance @ np.array(errors).T
        return variance, float(np.trace(spread) ** 2 / (spread**2).sum())


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric M with M M = matrix^-1 (the pseudo-inverse, where it has no inverse)."""
    values, vectors = np.linalg.eigh(matrix)
    inverse = [v**-0.5 if v > 1e-10 * values[-1] else 0.0 for v in values]
    return (vectors * inverse) @ vectors.T


def mean_over(y: Sequence[float], sources: Sequence[Hashable]) -> tuple[Estimate, Fit]:
    """The mean over tasks.

    Raises:
        ValueError: fewer than two tasks.
    """
    fit = Fit(y, np.ones((len(y), 1)), sources)
    return fit.estimate([1]), fit


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted (Holm 1979); in the order given."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted
