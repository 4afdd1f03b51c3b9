"""The cells of tables: numbers, one per seed, and what is known of them; nothing changes a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import NamedTuple

IN_MEAN = "of a number in this mean"  # in place of the sentence of a part's flag


class Place(NamedTuple):
    """The data set, classes and shots of a run."""

    dataset: str
    subsample: str = "all"
    shots: int = 0


class Missing(NamedTuple):
    """A run that a row lacks, although another row has it at the same place and seed."""

    row: str
    place: Place
    seed: int
    siblings: tuple[Path, ...]  # the runs that this row has


class OverSets(NamedTuple):
    """The difference of an average to the baseline's, in points, and its variation over sets.

    Attributes:
        sets: number of data sets.
        wins, losses: on how many of them the difference is above, and below, zero.
        low, high: 95 % interval of the mean difference.
        p: of a paired, two-sided test over sets.
        p_holm: p, adjusted for the other rows of its column; None: there are none.
    """

    sets: int
    wins: int
    losses: int
    low: float
    high: float
    p: float
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The difference of a cell's mean to that of the baseline's cell.

    Attributes:
        difference: in points.
        interval: its 95 % interval (low, high); None: not known.
        over_sets: the difference over data sets, of a cell that is an average over these.
    """

    difference: float
    interval: tuple[float, float] | None = None
    over_sets: OverSets | None = None


@dataclass(frozen=True)
class Measurement:
    """A number of one seed.

    Attributes:
        value: such as an accuracy in percent.
        seed: of its run; None: the value is not of one run (published, or a harmonic mean).
        flags: of its evaluation: name -> sentence.
        evaluations: (run folder, evaluation) of each data set that the value is the mean of.
    """

    value: float
    seed: int | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    evaluations: tuple[tuple[Path, dict], ...] = ()

    @classmethod
    def combined(cls, value: float, members: Sequence[Measurement], **more) -> Measurement:
        """A mean of ``members``, with the names of their flags."""
        flags = {name: IN_MEAN for member in members for name in member.flags}
        return cls(value, flags=flags, **more)


@dataclass(frozen=True)
class Cell:
    """The numbers in one place of a table; none: missing, or not evaluated.

    Attributes:
        measurements: one per seed.
        accuracy: whether these are accuracies, in percent.
        missing: the runs that it lacks.
        absent: whether it has no numbers because of these.
        interval: the 95 % interval (low, high) of its only number, an estimate.
        comparison: with the baseline's cell; None: there is no baseline.
        runs_per_number: the number of seeds, where it is not that of the measurements; 0: the
            number is a difference, in points.
        learns: whether its method learns anything; one that does not needs no further seeds.
    """

    measurements: tuple[Measurement, ...] = ()
    accuracy: bool = False
    missing: frozenset[Missing] = frozenset()
    absent: bool = False
    interval: tuple[float, float] | None = None
    comparison: Comparison | None = None
    runs_per_number: int | None = None
    learns: bool = True

    @property
    def values(self) -> list[float]:
        return [measurement.value for measurement in self.measurements]

    @property
    def seeds(self) -> list[int] | None:
        """The seed of each value; None: some are of no single run."""
        seeds = [m.seed for m in self.measurements if m.seed is not None]
        return seeds if len(seeds) == len(self.measurements) else None

    @property
    def by_seed(self) -> dict[int, Measurement]:
        """The measurements that are of one run each."""
        return {m.seed: m for m in self.measurements if m.seed is not None}

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.measurements) if self.runs_per_number is None else self.runs_per_number

    @property
    def stated_n(self) -> int:
        """The number of seeds that a table states; 0: none, because one run says all."""
        return self.n if self.learns or self.n > 1 else 0

    @property
    def mean(self) -> float:
        return mean(self.values)


def accuracy_cell(value: float | None, seeds: int | None = None) -> Cell:
    """A cell with one accuracy that is not of one run of ours; None: an empty cell.

    Args:
        seeds: how many runs the number is of.
    """
    if value is None:
        return Cell()
    return Cell((Measurement(value),), accuracy=True, runs_per_number=seeds)


def number_cell(values: Sequence[float], **more) -> Cell:
    """A cell of numbers that are no accuracies, such as seconds."""
    return Cell(tuple(map(Measurement, values)), **more)


def has_accuracies(cell: object) -> bool:
    """Whether a value in a row is a cell with accuracies in it."""
    return isinstance(cell, Cell) and cell.accuracy and bool(cell.measurements)


def average(cells: Sequence[Cell]) -> Cell:
    """The average of cells over data sets, for each seed that all of them have."""
    by_seed = [cell.by_seed for cell in cells]
    measurements = []
    for seed in sorted(set.intersection(*map(set, by_seed))):
        members = [measured[seed] for measured in by_seed]
        evaluations = tuple(source for member in members for source in member.evaluations)
        value = mean(member.value for member in members)
        measurements.append(
            Measurement.combined(value, members, seed=seed, evaluations=evaluations)
        )
    return Cell(tuple(measurements), accuracy=True, **_lacking(cells))


def harmonic(cells: Sequence[Cell]) -> Cell:
    """The harmonic mean of the cells' means: one number; ``n`` is the smallest of theirs."""
    if not all(cell.measurements for cell in cells):
        return Cell(**_lacking(cells))
    members = [measurement for cell in cells for measurement in cell.measurements]
    value = harmonic_mean([cell.mean for cell in cells])
    return Cell(
        (Measurement.combined(value, members),),
        accuracy=True,
        runs_per_number=min(cell.n for cell in cells),
        **_lacking(cells),
    )


def _lacking(cells: Sequence[Cell]) -> dict:
    missing = frozenset().union(*(cell.missing for cell in cells))
    return {
        "missing": missing,
        "absent": any(cell.absent for cell in cells),
        "learns": any(cell.learns for cell in cells),
    }
