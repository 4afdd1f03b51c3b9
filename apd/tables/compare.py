"""Differences to a baseline, with intervals over test images, over seeds and over data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from apd.errors import UserError, listed
from apd.results.runs import image_verdicts
from apd.tables.cells import Cell, Comparison, OverSets, has_accuracies
from apd.tables.nested import holm
from apd.tables.write import Table

RESAMPLES = 2_000


def compare(tables: list[Table], baseline: str, over: str = "images") -> list[Table]:
    """The tables, with the difference of each accuracy to that in the row named ``baseline``.

    Args:
        tables: the first column names their rows; tables without that row get no differences.
        over: one of ``INTERVALS``: what the 95 % interval of a difference samples.

    Raises:
        UserError: no table has such a row.
    """
    label = next(iter(tables[0].rows[0]))
    names = dict.fromkeys(row[label] for table in tables for row in table.rows)
    if baseline not in names:
        raise UserError(f"no {label} {baseline} in these tables: there are {listed(names)}")
    return [_compared(table, label, baseline, over) for table in tables]


def _compared(table: Table, label: str, baseline: str, over: str) -> Table:
    base = next((row for row in table.rows if row[label] == baseline), None)
    if base is None:
        return replace(table, baseline=None, over=over)
    rows = [
        {name: _with_comparison(value, base[name], over) for name, value in row.items()}
        if row is not base
        else row
        for row in table.rows
    ]
    columns = {name: _adjusted([row[name] for row in rows]) for name in base}
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    return replace(table, rows=rows, baseline=baseline, over=over)


def _with_comparison(value, base, over: str):
    """A value of a row: a cell with accuracies is compared, if the baseline's is one too."""
    if not (has_accuracies(value) and has_accuracies(base)):
        return value
    comparison = Comparison(
        value.mean - base.mean, INTERVALS[over](value, base), over_data_sets(value, base)
    )
    return replace(value, comparison=comparison)


def _adjusted(column: list) -> list:
    """A column, whose tests over data sets have p-values by Holm, if they are several."""
    tests = {
        number: value.comparison.over_sets
        for number, value in enumerate(column)
        if isinstance(value, Cell) and value.comparison and value.comparison.over_sets
    }
    if len(tests) < 2:
        return column
    p_values = dict(zip(tests, holm([test.p for test in tests.values()])))
    return [
        _with_p(value, p_values[number]) if number in tests else value
        for number, value in enumerate(column)
    ]


def _with_p(cell: Cell, p_holm: float) -> Cell:
    comparison = cell.comparison
    assert comparison and comparison.over_sets
    test = comparison.over_sets._replace(p_holm=p_holm)
    return replace(cell, comparison=replace(comparison, over_sets=test))


def paired_interval(cell: Cell, base: Cell) -> tuple[float, float] | None:
    """95 % interval of the difference of two means, by the paired percentile bootstrap.

    Test images are resampled, the same for both. An image's value is the mean of its verdicts over
    seeds. In an average over data sets, the images of each set are resampled separately. None: some
    run has no verdicts, or they are on other images.
    """
    strata = list(zip(*(m.evaluations for m in (*cell.measurements, *base.measurements))))
    if not strata:
        return None
    rng, means = np.random.default_rng(0), []
    for evaluations in strata:  # those of one data set, one for each run
        stored = [image_verdicts(folder, evaluation) for folder, evaluation in evaluations]
        per_run = [verdicts for verdicts in stored if verdicts is not None]
        if len(per_run) < len(stored) or len({images for _, images in per_run}) != 1:
            return None
        right = np.stack([verdicts for verdicts, _ in per_run])
        own = len(cell.measurements)
        difference = right[:own].mean(axis=0) - right[own:].mean(axis=0)
        # the values are few: to resample images, draw how often each value occurs
        values, counts = np.unique(difference.round(9), return_counts=True)
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
        means.append(drawn @ values / counts.sum())
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return 100 * float(low), 100 * float(high)


def interval_over_seeds(cell: Cell, base: Cell) -> tuple[float, float] | None:
    """95 % interval of the difference of two means over seeds (few-shot draws, initial prompts).

    It is Student's t on the differences of equal seeds, which have the same few-shot images; test
    images are fixed. None: there is one seed only, or the rows have different seeds.
    """
    ours, theirs = cell.by_seed, base.by_seed
    if ours.keys() != theirs.keys() or len(ours) < 2:
        return None
    return _t_interval([ours[seed].value - theirs[seed].value for seed in ours])


def _t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of the population that these are a sample of (Student's t)."""
    from scipy.stats import t  # slow to import

    count = len(differences)
    half = float(t.ppf(0.975, count - 1)) * float(np.std(differences, ddof=1)) / count**0.5
    middle = float(np.mean(differences))
    return middle - half, middle + half


INTERVALS: dict[str, Callable[[Cell, Cell], tuple[float, float] | None]] = {
    "images": paired_interval,
    "seeds": interval_over_seeds,
}


def over_data_sets(cell: Cell, base: Cell) -> OverSets | None:
    """How the difference of two averages varies over data sets; None: they are no averages.

    A set's difference is that of its means over seeds. The interval treats the sets as a sample of
    all sets (Student's t). The test flips the signs of the sets' differences, which could be either
    if the two rows did not differ: in all ways up to 16 sets, at random beyond.
    """
    counts = {len(m.evaluations) for m in (*cell.measurements, *base.measurements)}
    if len(counts) != 1 or counts <= {0, 1}:
        return None
    from scipy.stats import permutation_test  # slow to import

    ours, theirs = (
        np.mean(
            [[evaluation["accuracy"] for _, evaluation in m.evaluations] for m in c.measurements],
            axis=0,
        )
        for c in (cell, base)
    )
    differences, sets = ours - theirs, len(ours)
    test = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=2**16,
        vectorized=True,
        random_state=0,
    )
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return OverSets(sets, wins, losses, *_t_interval(differences), float(test.pvalue))
