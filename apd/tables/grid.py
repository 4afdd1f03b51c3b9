"""Runs become cells of tables: numbers, one per seed, and the runs that are missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from apd.catalog import data_rank
from apd.errors import UserError, listed
from apd.methods import rank
from apd.results.comparable import (
    changed_settings,
    check_comparable,
    check_same_prompts,
    learns,
    shots_rank,
    trained_where,
)
from apd.results.words import header, images_text
from apd.tables.cells import Cell, Measurement, Missing, Place, number_cell


class Topic(NamedTuple):
    """The evaluation whose accuracies a column has, averaged over data sets.

    Attributes:
        header: the evaluation in words.
        datasets: names of the data sets.
        subsample: "all", "base" or "new" classes.
        shots: images per class in training.
        source: the data set of training; "": the tested one.
    """

    header: str
    datasets: tuple[str, ...]
    subsample: str = "all"
    shots: int = 0
    source: str = ""


class Grid:
    """Comparable runs by row (a method, or one of its configs), place and seed.

    Args:
        same: what all runs must share, beside host, threat models and images: of "backbone",
            "subsample", "shots", "dataset".
        row: the name of a run's row; default: its method.

    Attributes:
        rows: their names, baselines first.
        places: all of them.

    Raises:
        UserError: the runs cannot be compared, or one was made twice.
    """

    def __init__(
        self,
        runs: dict[Path, dict],
        same: tuple[str, ...],
        row: Callable[[Path, dict], str] = lambda folder, run: run["method"],
    ) -> None:
        check_comparable(runs, same)
        check_same_prompts(runs, row)
        self._runs: dict = defaultdict(dict)  # (row, place) -> seed -> (folder, run)
        self._siblings: dict[str, list[Path]] = defaultdict(list)
        for folder, run in runs.items():
            self._siblings[row(folder, run)].append(folder)
        for folder, run, place in _placed(runs):
            by_seed = self._runs[row(folder, run), place]
            if run["seed"] in by_seed:
                _refuse_twice(run, by_seed[run["seed"]], folder)
            by_seed[run["seed"]] = folder, run
        for by_seed in self._runs.values():
            _check_config(by_seed)
        self.rows = sorted(self._siblings, key=rank)
        self.places = sorted(
            {place for _, place in self._runs},
            key=lambda place: (data_rank(place.dataset), place.subsample, shots_rank(place.shots)),
        )
        alike = stand_ins(runs)
        self._columns = {name: header(evaluation) for name, evaluation in alike.items()}
        self._images = {
            header(evaluation): images_text(evaluation) for evaluation in alike.values()
        }
        self._seeds = defaultdict(set)
        for (_, place), by_seed in self._runs.items():
            self._seeds[place].update(by_seed)

    @property
    def headers(self) -> list[str]:
        """The columns of the evaluations."""
        return list(self._images)

    def headers_by_images(self) -> dict[str, list[str]]:
        """The columns, grouped by the images that they are on; those on all images come first."""
        groups: dict[str, list[str]] = {}
        for column, images in sorted(self._images.items(), key=lambda item: item[1] != ""):
            groups.setdefault(images, []).append(column)
        return groups or {"": []}

    def values(self, field: str) -> list:
        """The different values of a field of the places: "dataset", "subsample" or "shots"."""
        distinct = {getattr(place, field): None for place in self.places}
        return sorted(distinct, key=shots_rank) if field == "shots" else list(distinct)

    def first(self, row: str) -> dict:
        """Some run of a row."""
        return next(
            run
            for (name, _), by_seed in self._runs.items()
            if name == row
            for _, run in by_seed.values()
        )

    def accuracies(self, row: str, place: Place, column: str) -> Cell:
        """The accuracies of one column's evaluation."""
        measurements = []
        for seed, (folder, run) in sorted(self._runs.get((row, place), {}).items()):
            for evaluation in run["evaluations"]:
                if self._columns[header(evaluation)] == column:
                    flags, source = evaluation.get("flags", {}), (folder, evaluation)
                    measurements.append(Measurement(evaluation["accuracy"], seed, flags, (source,)))
                    break
        return Cell(tuple(measurements), accuracy=True, **self._lacking(row, place))

    def numbers(self, row: str, place: Place, number: Callable[[dict], float | None]) -> Cell:
        """``number`` of each run that has it."""
        values = [number(run) for _, (_, run) in sorted(self._runs.get((row, place), {}).items())]
        measured = [value for value in values if value is not None]
        return number_cell(measured, **self._lacking(row, place))

    def _lacking(self, row: str, place: Place) -> dict:
        missing = self._missing(row, place)
        return {
            "missing": missing,
            "absent": bool(missing) and (row, place) not in self._runs,
            "learns": learns(self.first(row)),
        }

    def _missing(self, row: str, place: Place) -> frozenset[Missing]:
        siblings = tuple(self._siblings[row])
        own = self._runs.get((row, place), {})
        lacking = self._seeds[place] - own.keys()
        if lacking and not learns(self.first(row)):  # one run is enough for all seeds and shots
            lacking = set() if own else {min(lacking)}
            place = place._replace(shots=self.first(row)["shots"])
        return frozenset(Missing(row, place, seed, siblings) for seed in lacking)


def stand_ins(runs: dict[Path, dict]) -> dict[str, dict]:
    """Header of each evaluation -> an evaluation that represents its column.

    An evaluation on a subset of N images shares its column with those on all images of other data
    sets, if these have at most N images.
    """
    # header without the images -> header -> an evaluation, and the number of images by data set
    alike: dict = defaultdict(dict)
    for run in runs.values():
        for evaluation in run["evaluations"]:
            of_all = header({**evaluation, "images": "all"})
            _, totals = alike[of_all].setdefault(header(evaluation), (evaluation, {}))
            totals[run["dataset"], run["subsample"]] = evaluation["total"]
    columns: dict[str, dict] = {}
    for of_all, by_header in alike.items():
        columns |= {name: evaluation for name, (evaluation, _) in by_header.items()}
        _, whole = by_header.get(of_all, (None, {}))
        for name, (evaluation, part_totals) in by_header.items():
            if name != of_all and whole and not whole.keys() & part_totals.keys():
                most = evaluation["images"]["count"]
                if max(whole.values()) <= most:
                    shared = {**evaluation, "images": {**evaluation["images"], "at most": True}}
                    columns |= {of_all: shared, name: shared}
    return columns


def sources(runs: dict[Path, dict]) -> dict[str, str]:
    """Data set -> the data set of training, where that is another one."""
    trained = {run["dataset"]: trained_where(run) for run in runs.values() if trained_where(run)}
    return {dataset: source for dataset, source in trained.items() if source != dataset}


def source_notes(runs: dict[Path, dict]) -> list[str]:
    """Notes below a table on prompts that were trained on other data than they are tested on."""
    targets = defaultdict(list)
    for dataset, source in sources(runs).items():
        targets[source].append(dataset)
    notes = [
        f"on {listed(names)}: prompts trained on {source}" for source, names in targets.items()
    ]
    return notes + unknown_sources(runs)


def unknown_sources(runs: dict[Path, dict]) -> list[str]:
    """A note below a table on prompts whose training data is not known."""
    unknown = [
        str(folder) for folder, run in runs.items() if learns(run) and not trained_where(run)
    ]
    if not unknown:
        return []
    return [
        "not known what these prompts were trained on (results of an earlier version, without the "
        f"run that trained them): {listed(unknown, 2)}"
    ]


def _placed(runs: dict[Path, dict]) -> Iterator[tuple[Path, dict, Place]]:
    """The runs with their places; a zero-shot run has a place at every number of shots."""
    learned = defaultdict(set)
    for run in filter(learns, runs.values()):
        learned[run["dataset"], run["subsample"]].add(run["shots"])
    anywhere = set().union(*learned.values()) or {0}
    first: dict = {}  # key and shots of a zero-shot run -> its folder and itself
    placed = set()
    for folder, run in runs.items():
        dataset, subsample, shots = run["dataset"], run["subsample"], run["shots"]
        key = (run["method"], dataset, subsample, run["seed"])
        if learns(run):
            yield folder, run, Place(dataset, subsample, shots)
            continue
        if (key, shots) in first:
            _refuse_twice(run, first[key, shots], folder)
        first[key, shots] = folder, run
        if key not in placed:
            placed.add(key)
            for shots in learned.get((dataset, subsample), anywhere):
                yield folder, run, Place(dataset, subsample, shots)


def _refuse_twice(run: dict, earlier: tuple[Path, dict], folder: Path) -> None:
    earlier_folder, earlier_run = earlier
    hint = ""
    if changed := changed_settings(earlier_run, run):
        hint = f" ({listed(changed, 3)}): --table ablation compares configs"
    raise UserError(
        f"{run['method']} has seed {run['seed']} twice: {earlier_folder}, {folder}{hint}"
    )


def _check_config(by_seed: dict[int, tuple[Path, dict]]) -> None:
    """Refuse a mean over seeds whose runs were configured differently."""
    (first_folder, first), *further = by_seed.values()
    for folder, run in further:
        if learns(run) and (changed := changed_settings(first, run)):
            raise UserError(
                f"seeds of {run['method']} have different configs: {listed(changed, 3)} in "
                f"{first_folder}, {folder}"
            )
