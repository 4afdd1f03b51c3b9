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
    """Add to all accuracies their difference to the row named ``baseline``, in place.

    Args:
        tables: of ``apd.tables.write.Table``, whose first column names the rows; tables without
            that row are left as they are.
        over: one of ``INTERVALS``: what the 95 % interval of a difference samples.

    Raises:
        UserError: no table has such a row.
    """
    label = next(iter(tables[0].rows[0]))
    names = dict.fromkeys(row[label] for table in tables for row in table.rows)
    if baseline not in names:
        raise UserError(f"no {label} {baseline} in these tables: there are {listed(names)}")
    for table in tables:
        base: dict = next((row for row in table.rows if row[label] == baseline), {})
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

    Test images are resampled, the same for both. An image's value is the mean of its verdicts over
    seeds. In an average over data sets, the images of each set are resampled separately. None: some
    run has no verdicts, or they are on other images.
    """
    strata = list(zip(*(value.parts for value in [*cell, *base])))
    if not strata:
        return None
    rng, means = np.random.default_rng(0), []
    for parts in strata:
        known = [image_verdicts(folder, evaluation) for folder, evaluation in parts]
        per_run = [verdicts for verdicts in known if verdicts is not None]
        if len(per_run) < len(known) or len({images for _, images in per_run}) != 1:
            return None
        right = np.stack([verdicts for verdicts, _ in per_run])
        difference = right[: len(cell)].mean(axis=0) - right[len(cell) :].mean(axis=0)
        # the values are few: to resample images, draw how often each value occurs
        values, counts = np.unique(difference.round(9), return_counts=True)
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
        means.append(drawn @ values / counts.sum())
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return 100 * float(low), 100 * float(high)


def interval_over_seeds(cell: Numbers, base: Numbers) -> tuple[float, float] | None:
    """95 % interval of the difference of two means over seeds (few-shot draws, initial prompts).

    It is Student's t on the differences of equal seeds, which have the same few-shot images; test
    images are fixed. None: there is one seed only, or the rows have different seeds.
    """
    ours, theirs = ({value.seed: value for value in row} for row in (cell, base))
    if ours.keys() != theirs.keys() or len(ours) < 2 or None in ours:
        return None
    return _t_interval([ours[seed] - theirs[seed] for seed in ours])


def _t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of the population that these are a sample of (Student's t)."""
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
    """How the difference of two averages varies over data sets; None: they are no averages.

    A set's difference is that of its means over seeds. The interval treats the sets as a sample of
    all sets (Student's t). The test flips the signs of the sets' differences, which could be either
    if the two rows did not differ: in all ways up to 16 sets, at random beyond.
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
