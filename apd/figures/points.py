"""The accuracies of many runs, as points to draw."""

from __future__ import annotations

from collections import defaultdict
from math import hypot
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from apd.errors import UserError, listed
from apd.results.comparable import settings, shots_of
from apd.results.runs import clean_accuracy
from apd.results.words import described, header
from apd.tables.grid import stand_ins


class Setting(NamedTuple):
    """What runs must have in common to be drawn in one figure.

    Attributes:
        dataset: its name; "": an average over data sets.
        subsample, backbone, host: as in results.json; the host without its version.
        averaged: over how many data sets.
    """

    dataset: str
    subsample: str
    backbone: str
    host: str
    averaged: int = 1

    def __str__(self) -> str:
        data = self.dataset if self.averaged == 1 else f"Average of {self.averaged} data sets"
        half = "" if self.subsample == "all" else f" ({self.subsample} classes)"
        return f"{data}{half}, {self.backbone}, {self.host}"

    @property
    def stem(self) -> str:
        """The setting as part of a file's name."""
        half = [] if self.subsample == "all" else [self.subsample]
        data = self.dataset if self.averaged == 1 else "average"
        return "_".join([data, *half, self.backbone, self.host])


class Point(NamedTuple):
    """One evaluation of one run, or its average over data sets.

    Attributes:
        method: name of the run (``name_runs``).
        shots: None: the method is not trained, and belongs to every number of shots.
        attack: its name with its conditions.
        accuracy: in %.
        clean: clean accuracy on the same images, in %; None: not known.
        evaluation: the record.
    """

    setting: Setting
    method: str
    shots: int | None
    seed: int
    attack: str
    accuracy: float
    clean: float | None
    evaluation: dict
    error: float  # standard error of the accuracy over test images, in points
    clean_error: float  # that of the clean accuracy


def setting_of(run: dict) -> Setting:
    """The setting of a run; ``run`` is the contents of its results.json."""
    host = run["host"].split()[0]  # without its version
    return Setting(run["dataset"], run["subsample"], run["backbone"], host)


def points(runs: dict[Path, dict]) -> list[Point]:
    """All evaluations of all runs.

    Raises:
        UserError: two threat models with the same name in ``described``, or a run twice.
    """
    names, alike = name_runs(runs), stand_ins(runs)
    by_key: dict[tuple, tuple[Path, Point | None]] = {}
    first: dict[tuple, tuple[Path, dict]] = {}
    for folder, run in runs.items():
        setting, shots = setting_of(run), shots_of(run)
        for evaluation in run["evaluations"]:
            attack = described(alike[header(evaluation)])
            threat = {k: v for k, v in (evaluation["threat_model"] or {}).items() if k != "seed"}
            earlier, expected = first.setdefault((setting[1:], attack), (folder, threat))
            if threat != expected:
                keys = [key for key in threat if threat[key] != expected.get(key)]
                here, there = ({key: t.get(key) for key in keys} for t in (threat, expected))
                raise UserError(
                    f"one figure cannot hold two threat models of {attack}: {there} in {earlier}, "
                    f"{here} in {folder}"
                )
            key = (setting, names[folder], shots, run["seed"], attack)
            earlier, _ = by_key.setdefault(key, (folder, None))
            if earlier != folder and shots is not None:
                raise UserError(
                    f"{names[folder]} has seed {run['seed']} twice: {earlier}, {folder}"
                )
            clean = clean_accuracy(folder, run, evaluation)
            errors = (_standard_error(a, evaluation) for a in (evaluation["accuracy"], clean or 0))
            by_key[key] = folder, Point(*key, evaluation["accuracy"], clean, evaluation, *errors)
    return [point for _, point in by_key.values() if point]


def _standard_error(accuracy: float, evaluation: dict) -> float:
    """Of an accuracy on the images of ``evaluation``, by the binomial distribution; in %."""
    return (accuracy * (100 - accuracy) / evaluation["total"]) ** 0.5


def averages(points: list[Point]) -> list[Point]:
    """The averages over data sets, of methods, shots, seeds and attacks that every set has."""
    sets, members_of = defaultdict(set), defaultdict(list)
    for point in points:
        common = point.setting[1:]  # what the data sets of an average have in common
        sets[common].add(point.setting.dataset)
        members_of[(common, *point[1:5])].append(point)
    averaged = []
    for (common, *_), members in members_of.items():
        count = len(sets[common])
        if 1 < count == len(members):
            clean = [p.clean for p in members if p.clean is not None]
            averaged.append(
                members[0]._replace(
                    setting=Setting("", *common[:3], count),
                    accuracy=mean(p.accuracy for p in members),
                    clean=mean(clean) if len(clean) == count else None,
                    error=hypot(*(p.error for p in members)) / count,
                    clean_error=hypot(*(p.clean_error for p in members)) / count,
                )
            )
    return averaged


def name_runs(runs: dict[Path, dict]) -> dict[Path, str]:
    """The name of each run: its method, and the config keys in which runs of the method differ."""
    names = {folder: run["method"] for folder, run in runs.items()}
    alike, varied = defaultdict(list), defaultdict(set)
    for run in runs.values():
        alike[run["method"], setting_of(run), shots_of(run), run["seed"]].append(settings(run))
    for (method, *_), configs in alike.items():
        for key in {key for config in configs for key in config}:
            if any(config.get(key) != configs[0].get(key) for config in configs):
                varied[method].add(key)
    for method, keys in varied.items():
        for folder, run in runs.items():
            if run["method"] == method:
                own = settings(run)
                texts = (f"{key.rpartition('.')[2]} {own.get(key)}" for key in sorted(keys))
                names[folder] = f"{method} ({listed(texts)})"
    return names
