"""Differences to a baseline, with intervals over test images, over seeds and over data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np

from apd.errors import UserError, listed
from apd.results.runs import image_verdicts
from apd.tables.grid import Numbers, OverSets, is_accuracy
from apd.tables.nested import holm

RESAMPLES = 2_000


def compare(tables: list, baseline: str, over: str = "images") -> None:
    """Give the accuracies of all other rows their difference to the row of that name.

    Args:
        tables: of ``apd.tables.write.Table``, whose first column names the rows; those that
            lack the row are left as they are.
        over: of ``INTERVALS``: what the 95 % interval of a difference takes to be drawn anew.

    Raises:
        UserError: all of them lack it.
    """
    label = next(iter(tables[0].rows[0]))
    names = dict.fromkeys(row[label] for table in tables for row in table.rows)
    if baseline not in names:
        raise UserError(f"no {label} {baseline} in these tables: there are {listed(names)}")
    for table in tables:
        base = next((row for row in table.rows if row[label] == baseline), {})
        table.baseline, table.over = (baseline if base else None), over
        for row in table.rows:
            for name, cell in row.items():
                if row is not base and is_accuracy(cell) and is_accuracy(base.get(name)):
                    cell.difference = mean(cell) - mean(base[name])
                    cell.interval = INTERVALS[over](cell, base[name])
                    cell.over_sets = over_data_sets(cell, base[name])
        for name in table.rows[0]:
            _adjust([row[name] for row in table.rows if getattr(row[name], "over_sets", None)])


def _adjust(cells: list[Numbers]) -> None:
    """Give the tests of a column their p-values by Holm, if they are several."""
    tests = [cell.over_sets for cell in cells if cell.over_sets]
    if len(tests) > 1:
        for cell, test, p in zip(cells, tests, holm([test.p for test in tests])):
            cell.over_sets = test._replace(p_holm=p)


def paired_interval(cell: Numbers, base: Numbers) -> tuple[float, float] | None:
    """95 % interval of the difference of two means, by the paired percentile bootstrap.

    Test images are drawn again, the same for both; an image counts with the mean of its verdicts
    over seeds. In an average over data sets each one's images are drawn apart. None: without
    verdicts of all runs, on the same images.
    """
    strata = list(zip(*(value.parts for value in [*cell, *base])))
    if not strata:
        return None
    rng, means = np.random.default_rng(0), []
    for parts in strata:
        kept = [image_verdicts(folder, evaluation) for folder, evaluation in parts]
        if None in kept or len({images for _, images in kept}) != 1:
            return None
        right = np.stack([verdicts for verdicts, _ in kept])
        difference = right[: len(cell)].mean(axis=0) - right[len(cell) :].mean(axis=0)
        # few values occur, so that to draw images is to draw how often each value comes
        values, counts = np.unique(difference.round(9), return_counts=True)
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
        means.append(drawn @ values / counts.sum())
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return 100 * float(low), 100 * float(high)


def interval_over_seeds(cell: Numbers, base: Numbers) -> tuple[float, float] | None:
    """95 % interval of the difference of two means, over seeds: few-shot draws and starts.

    Student's t on the differences of equal seeds, which draw the same images; test images are
    taken as they are. None: one seed, or rows of different seeds.
    """
    ours, theirs = ({value.seed: value for value in row} for row in (cell, base))
    if ours.keys() != theirs.keys() or len(ours) < 2 or None in ours:
        return None
    return _t_interval([ours[seed] - theirs[seed] for seed in ours])


def _t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of what these are a sample of (Student's t)."""
    from scipy.stats import t  # slow to import

    count = len(differences)
    half = float(t.ppf(0.975, count - 1)) * float(np.std(differences, ddof=1)) / count**0.5
    middle = float(np.mean(differences))
    return middle - half, middle + half


INTERVALS: dict[str, Callable[[Numbers, Numbers], tuple[float, float] | None]] = {
    "images": paired_interval,
    "seeds": interval_over_seeds,
}


def over_data_sets(cell: Numbers, base: Numbers) -> OverSets | None:
    """How the difference of two averages over data sets varies with the set; None: not averages.

    A set's difference is that of the means over seeds. The interval takes other sets to be drawn
    as these were (Student's t); the test flips the signs of the sets' differences, in all ways up
    to 16 sets, as if the two rows had no part in them.
    """
    counts = {len(value.parts) for value in [*cell, *base]}
    if len(counts) != 1 or counts <= {0, 1}:
        return None
    from scipy.stats import permutation_test  # slow to import

    ours, theirs = (
        np.mean(
            [[evaluation["accuracy"] for _, evaluation in value.parts] for value in row], axis=0
        )
        for row in (cell, base)
    )
    apart, sets = ours - theirs, len(ours)
    test = permutation_test(
        (apart,),
        np.mean,
        permutation_type="samples",
        n_resamples=2**16,
        vectorized=True,
        random_state=0,
    )
    wins, losses = int((apart > 0).sum()), int((apart < 0).sum())
    return OverSets(sets, wins, losses, *_t_interval(apart), float(test.pvalue))
